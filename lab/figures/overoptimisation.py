"""The figure of overoptimisation: proxy and gold against the distance from SFT, and what is lost from best to end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lab.figures.labels import inches, panel_inches, spread
from lab.figures.page import EDGE, ROW, Page, empty
from lab.figures.style import (
    BASE,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    VERMILION,
    WARNING,
    WHITE,
    WIDTH_INCHES,
    paper,
)
from lab.overoptimisation import predict
from lab.tables.overoptimisation import Overoptimisation
from lab.tables.overoptimisation_text import METHODS, interval
from lab.tables.sweep import WORTH_HAVING

DASHED: Any = (0, (3, 2))
STEPS = [1, 2, 2.5, 5, 10]
SERIES = (VERMILION, ORANGE, BLUE, GREEN, PURPLE, SKY)
"""Of the candidates, in turn; a variant (KL held) has its candidate's colour and hollow marks."""
LEFT, GAP, LEADER = 0.44, 0.38, 0.17
PROXY, GOLD = 1.05, 2.0


@dataclass(frozen=True)
class _Look:
    color: str
    hollow: bool


def overoptimisation_figure(found: Overoptimisation, note: str | None = None) -> Figure:
    """Left best-of-n, right PPO; (a, b) proxy and (c, d) gold gained over SFT against √KL, means thick, seeds faint,
    the fitted form dashed; (e) the drop from best to end, and whether it is smaller than that of the main reference.

    ``note`` is printed on the figure. ValueError for tables without a curve.
    """
    if found.curves.empty:
        raise ValueError("overoptimisation_figure: no curves")
    looks = _looks(found.table)
    with paper():
        rows = _rows(found.table)
        page = Page.of(
            0, _caption(found), note, panels=(PROXY, GOLD, ROW * len(rows)), above=0.24, below=0.38,
        )  # fmt: skip
        sides = [_side(found.curves[found.curves.method == method]) for method in METHODS]
        width = (WIDTH_INCHES - LEFT - EDGE - GAP - sum(sides)) / 2
        for place, (method, name) in enumerate(METHODS.items()):
            left = LEFT + place * (width + sides[0] + GAP)
            own, fits = (table[table.method == method] for table in (found.curves, found.fits))
            own_looks = {model: look for (m, model), look in looks.items() if m == method}
            proxy, gold = page.axes(left, width, 0), page.axes(left, width, 1)
            _panel(proxy, own, own_looks, "proxy_gain")
            _panel(gold, own, own_looks, "gold_gain", fits)
            proxy.set_ylabel("proxy over SFT (sd)" if place == 0 else "")
            gold.set_ylabel("gold over SFT" if place == 0 else "")
            gold.set_xlabel("√KL from SFT (√nats per sequence)")
            page.heading(proxy, "ab"[place], f"{name}: what is optimised (proxy)")
            page.heading(gold, "cd"[place], f"{name}: what is wanted (gold)")
        _forest(page, found, rows, looks)
        page.finish()
    return page.fig


def _looks(table: pd.DataFrame) -> dict[tuple[str, str], _Look]:
    """A colour a candidate. Models of best-of-n are the candidates; one of PPO may add a word to a candidate's name."""
    candidates = list(dict.fromkeys(table.model[table.method == "bon"])) or list(dict.fromkeys(table.model))
    looks = {}
    for method, model in zip(table.method, table.model, strict=True):
        fitting = [name for name in candidates if model == name or model.startswith(f"{name}_")]
        name = max(fitting, key=len) if fitting else model
        place = candidates.index(name) if name in candidates else len(candidates)
        looks[method, model] = _Look(SERIES[place % len(SERIES)], model != name)
    return looks


# ------------------------------------------------------------------------------------------------------------ curves


def _side(own: pd.DataFrame) -> float:
    """Inches for the names of a panel's curves."""
    return LEADER + max((inches(label, SMALL) for label in own.label), default=0.0) + 0.04


def _panel(axes: Axes, own: pd.DataFrame, looks: dict[str, _Look], name: str, fits: pd.DataFrame | None = None) -> None:
    """Every model's mean and seeds, and its fit; its name to the right of the panel, joined to the curve's end."""
    axes.axhline(0, color=GREY, linewidth=0.6, linestyle=DASHED, zorder=1)
    shown = own.dropna(subset=[name])
    if shown.empty:
        empty(axes, "not measured")
        return
    several = own.groupby("model").n_seeds.max().max() > 1
    ends: dict[str, tuple[float, float]] = {}
    for model, lines in shown.groupby("model", sort=False):
        look, mean = looks[str(model)], lines[lines.seed.isna()].sort_values("at")
        faint: dict[str, Any] = {"color": look.color, "linewidth": 0.5, "alpha": 0.3, "zorder": 2}
        for _, path in lines[lines.seed.notna()].groupby("seed") if several else ():
            path = path.sort_values("at")
            axes.plot(path.sqrt_kl, path[name], **faint)
        axes.plot(mean.sqrt_kl, mean[name], color=look.color, linewidth=1.3, zorder=4)
        mark: dict[str, Any] = {"markerfacecolor": WHITE if look.hollow else look.color, "markeredgewidth": 0.7}
        style: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 2.6, "color": look.color, **mark}
        axes.plot(mean.sqrt_kl, mean[name], zorder=5, **style)
        end = mean.iloc[-1]
        ends[str(model)] = (float(end.sqrt_kl), float(end[name]))
        for line in (end, mean.loc[mean[name].idxmax()]):
            low, high = line[f"{name}_low"], line[f"{name}_high"]
            axes.plot([line.sqrt_kl] * 2, [low, high], color=look.color, linewidth=0.8, zorder=3)
    axes.set_xlim(0, 1.03 * max(own.sqrt_kl.max(), 1e-9))
    low, high = axes.get_ylim()
    for line in [] if fits is None else fits.to_dict("records"):
        if not math.isnan(line.get("a", math.nan)):
            d = np.linspace(0, line["largest_sqrt_kl"], 100)
            fitted = predict(line["method"], line["a"], line["b"], d)
            color = looks[line["model"]].color
            axes.plot(d, fitted, color=color, linewidth=0.9, linestyle=DASHED, zorder=3, alpha=0.9)
    axes.set_ylim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    _names(axes, ends, looks, dict(zip(own.model, own.label, strict=True)))


def _names(axes: Axes, ends: dict[str, tuple[float, float]], looks: dict[str, _Look], labels: dict[str, str]) -> None:
    width, height = panel_inches(axes)
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    wanted = {model: (y - low) / (high - low) * height for model, (_, y) in ends.items()}
    for model, y in spread(wanted, 0.115, 0.0, height).items():
        color, place = looks[model].color, 1 + LEADER / width
        x0, y0 = ends[model][0] / right, wanted[model] / height
        line: dict[str, Any] = {"color": color, "linewidth": 0.5, "alpha": 0.6, "clip_on": False, "zorder": 2}
        across = max(x0 + 0.02, 1.0)
        axes.plot([x0 + 0.02, across, place - 0.02 / width], [y0, y0, y / height], transform=axes.transAxes, **line)
        text: dict[str, Any] = {"va": "center", "size": SMALL, "color": color, "transform": axes.transAxes}
        axes.text(place, y / height, labels[model], **text)


# ------------------------------------------------------------------------------------------------------------- drops


def _rows(table: pd.DataFrame) -> list[str | pd.Series]:
    """A heading for each method, then its models."""
    rows: list[str | pd.Series] = []
    for method, name in METHODS.items():
        own = table[table.method == method]
        rows += [name, *(line for _, line in own.iterrows())] if len(own) else []
    return rows


def _forest(
    page: Page, found: Overoptimisation, rows: Sequence[str | pd.Series], looks: dict[tuple[str, str], _Look]
) -> None:
    labels = found.table.set_index(["method", "model"]).label
    lines = [line for line in rows if not isinstance(line, str)]
    left = max(inches(_name(line), BASE) for line in lines) + EDGE + 0.2
    right = 3.5
    axes = page.axes(left, WIDTH_INCHES - left - right, 2)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=GREY, linewidth=0.6, linestyle=DASHED, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.set_xlabel("gold lost from the best point to the end")
    outside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    inch = 1 / (WIDTH_INCHES - left - right)
    for place, line in enumerate(rows):
        if isinstance(line, str):
            axes.text((EDGE - left) * inch, place, line, weight="bold", **outside)
            continue
        look = looks[line.method, line.model]
        axes.text(-0.08 * inch, place, _name(line), ha="right", color=look.color, **outside)
        if math.isnan(line["drop"]):
            axes.text(1 + 0.1 * inch, place, "no run", size=SMALL, color=WARNING, style="italic", **outside)
            continue
        axes.plot([line.drop_low, line.drop_high], [place] * 2, color=look.color, linewidth=1.2, zorder=3)
        face = WHITE if look.hollow else look.color
        mark: dict[str, Any] = {
            "marker": "o",
            "markersize": 4.0,
            "markerfacecolor": face,
            "markeredgecolor": look.color,
        }
        axes.plot([line["drop"]], [place], linestyle="", zorder=4, **mark)
        said = "0: best at the end" if line.ends_at_best else interval(line, "drop", "+.3f")
        axes.text(1 + 0.1 * inch, place, said.replace("-", "−"), size=SMALL, **outside)
        if line.reference:
            bold: dict[str, Any] = {"weight": "bold"} if line.verdict != "open" else {"color": GREY}
            text = f"less than {labels[line.method, line.reference]}? {line.verdict}"
            axes.text(1 + 1.32 * inch, place, text, size=SMALL, **bold, **outside)
    page.heading(axes, "e", "overoptimised? gold lost from best to end", left=EDGE)


def _name(line: pd.Series) -> str:
    return line.label if line.n_seeds == line.n_expected else f"{line.label}, {line.n_seeds} of {line.n_expected} seeds"


def _caption(found: Overoptimisation) -> str:
    planned = sorted({int(count) for count in found.table.n_expected})
    seeds = f"{planned[0]}" if len(planned) == 1 else f"{planned[0]} to {planned[-1]}"
    many = planned[-1] > 1
    text = f"{int(found.table.n_seeds.sum())} of {int(found.table.n_expected.sum())} runs, {seeds} "
    text += f"seed{'s' if many else ''} a model. Thick: means; " + ("faint: seeds; " if many else "")
    text += "dashed: the form of Gao et al. 2022, fitted. Hollow: variants with another KL penalty. "
    text += f"Bars: {found.level:.0%} intervals over {'seeds and prompts' if many else 'prompts only (one seed)'}, "
    text += "at the highest point and the end. "
    text += "e: the best point is chosen on one half of the prompts and measured on the other, both ways. "
    text += "Less than …? supported: less is lost, with the whole interval of the difference and p < 0.05 after Holm; "
    text += (
        f"refuted: more is lost, or less than {WORTH_HAVING:g} saved; open: neither, or the reference is not surely "
    )
    return text + "overoptimised itself."
