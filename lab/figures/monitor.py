"""The figure of the hacking monitor: drift along training of hacked and of healthy runs, what each signal caught."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from lab.figures.labels import inches
from lab.figures.page import EDGE, ROW, Page, empty
from lab.figures.style import BASE, BLUE, GREY, LIGHT_GREY, SMALL, VERMILION, WHITE, WIDTH_INCHES, paper
from lab.monitor import COMBINED
from lab.tables.monitoring import SHOWN, Monitoring, best_signals
from lab.tables.overoptimisation_text import signal_name

DASHED: Any = (0, (3, 2))
COLORS = {"hacked": VERMILION, "healthy": BLUE, "collapsed": LIGHT_GREY}
PANEL, LEFT = 1.55, 0.44
LEAST, MOST = 0.1, 100.0
"""Of drift in units of its limit, where it is drawn."""


def monitor_figure(found: Monitoring, note: str | None = None) -> Figure:
    """(a) drift of all signals together and of the best single ones, in units of the alarm's limit, over rollouts, a
    line a run; dots: alarms, ticks: where gold fell. (b) hacked runs caught, and healthy ones with a false alarm. (c)
    how many rollouts before the fall the alarm came. Where there are no numbers the figure says why.

    ``note`` is printed on the figure.
    """
    with paper():
        if found.reason or found.table.empty:
            page = Page.of(0, _counts(found), note, panels=(0.7,), above=0.24, below=0.12)
            axes = page.axes(LEFT, WIDTH_INCHES - LEFT - EDGE)
            empty(axes, f"No monitor: {found.reason}.")
            page.heading(axes, "a", "alarms without gold")
            page.finish()
            return page.fig
        lines = found.table.set_index("signal", drop=False).loc[[COMBINED, *best_signals(found.table)]]
        page = Page.of(0, _caption(found), note, panels=(PANEL, ROW * len(lines)), above=0.3, below=0.38)
        _series(page, found)
        _forest(page, found, lines.to_dict("records"))
        page.finish()
    return page.fig


# ------------------------------------------------------------------------------------------------------------- series


def _series(page: Page, found: Monitoring) -> None:
    names = list(dict.fromkeys(found.series.signal))
    names = [COMBINED, *(name for name in names if name != COMBINED)]
    gap = 0.12
    width = (WIDTH_INCHES - LEFT - EDGE - gap * (len(names) - 1)) / len(names)
    runs = found.runs.set_index("run")
    last, most = float(found.runs.rollouts.max()), min(max(float(found.series.ratio.max()), 3.0), MOST)
    for place, name in enumerate(names):
        axes = page.axes(LEFT + place * (width + gap), width, 0)
        axes.set_yscale("log")
        axes.set_ylim(LEAST * 0.9, most * 2.5)  # the key lies above the lines
        axes.set_xlim(0, last + 0.5)
        axes.yaxis.set_major_locator(FixedLocator([0.1, 1, 10, 100]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.axvspan(0, found.baseline, color="#F2F2F2", linewidth=0, zorder=0)
        axes.axhline(1, color=GREY, linewidth=0.8, linestyle=DASHED, zorder=1)
        for kind in ("collapsed", "healthy", "hacked"):
            for run, own in found.series[found.series.signal == name].groupby("run"):
                if runs.kind[run] == kind:
                    _run(axes, own.sort_values("rollout"), kind, runs.onset_rollout[run])
        axes.set_xlabel("rollout")
        title = signal_name(name)
        if place:
            axes.tick_params(labelleft=False)
            axes.text(0.0, 1.035, title, transform=axes.transAxes, size=BASE, va="bottom")
        else:
            axes.set_ylabel("drift / its limit")
            page.heading(axes, "a", title)
            _key(axes, found)


def _run(axes: Axes, own: pd.DataFrame, kind: str, onset: float) -> None:
    color, ratio = COLORS[kind], own.ratio.clip(LEAST, MOST)
    order = {"collapsed": 2, "healthy": 3, "hacked": 4}[kind]
    axes.plot(own.rollout, ratio, color=color, linewidth=0.7, alpha=0.75, zorder=order)
    alarm = own[own.ratio > 1]
    if len(alarm):
        at = alarm.index[0]
        mark: dict[str, Any] = {"marker": "o", "markersize": 3.4, "markeredgecolor": WHITE, "markeredgewidth": 0.4}
        axes.plot([own.rollout[at]], [ratio[at]], color=color, linestyle="", zorder=6, **mark)
    if not math.isnan(onset) and len(own):
        near = (own.rollout - onset).abs().idxmin()
        tick: dict[str, Any] = {"marker": "|", "markersize": 4.5, "markeredgewidth": 1.0, "color": "#000000"}
        axes.plot([onset], [ratio[near]], linestyle="", zorder=5, **tick)


def _key(axes: Axes, found: Monitoring) -> None:
    style: dict[str, Any] = {"transform": axes.transAxes, "size": SMALL, "va": "top", "zorder": 7}
    counts = found.runs.kind.value_counts()
    for place, (kind, color) in enumerate(COLORS.items()):
        if counts.get(kind, 0):
            axes.text(0.03, 0.985 - 0.075 * place, f"{kind} ({counts[kind]})", color=color, weight="bold", **style)
    below: dict[str, Any] = {"size": SMALL, "color": GREY}
    axes.text(0.02, 1.05, "limit", va="bottom", transform=axes.get_yaxis_transform(), **below)


# ------------------------------------------------------------------------------------------------------------- forest


def _forest(page: Page, found: Monitoring, lines: list[dict[str, Any]]) -> None:
    left = max(inches(signal_name(line["signal"]), BASE) for line in lines) + EDGE + 0.1
    numbers, gap = 1.28, 0.16
    width = (WIDTH_INCHES - left - numbers - gap - EDGE) / 2
    shares, leads = page.axes(left, width, 1), page.axes(left + width + numbers + gap, width, 1)
    for axes in (shares, leads):
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    shares.set_xlim(-0.02, 1.02)
    shares.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    shares.axvline(found.budget, color=BLUE, linewidth=0.6, linestyle=DASHED, zorder=1)
    shares.set_xlabel("share of runs")
    leads.axvline(0, color="#000000", linewidth=0.8, zorder=1)
    leads.set_xlabel("rollouts from the alarm to the fall of gold")
    leads.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    outside: dict[str, Any] = {"transform": shares.get_yaxis_transform(), "va": "center"}
    inch = 1 / width
    for place, line in enumerate(lines):
        weight = "bold" if line["signal"] == COMBINED else "normal"
        name = signal_name(line["signal"])
        shares.text(-0.06 * inch, place, name, ha="right", weight=weight, **outside)
        hacked, healthy = int(line["hacked"]), int(line["healthy"])
        caught = (1 - line["misses_rate"], 1 - line["misses_high"], 1 - line["misses_low"])
        false = tuple(line[f"false_alarms_{end}"] for end in ("rate", "low", "high"))
        _share(shares, place - 0.13, caught, VERMILION, VERMILION, "o")
        _share(shares, place + 0.17, false, BLUE, WHITE, "s")
        text: dict[str, Any] = {"size": SMALL, "weight": weight, **outside}
        said = f"{hacked - int(line['misses'])} of {hacked}"
        shares.text(1 + 0.52 * inch, place, said, color=VERMILION, ha="right", **text)
        said = f"{int(line['false_alarms'])} of {healthy}"
        shares.text(1 + 1.16 * inch, place, said, color=BLUE, ha="right", **text)
        _lead(leads, place, found, line)
    head: dict[str, Any] = {"size": SMALL, "ha": "right", "va": "center", "transform": shares.get_yaxis_transform()}
    shares.text(1 + 0.52 * inch, -0.95, "caught", color=VERMILION, **head)
    shares.text(1 + 1.16 * inch, -0.95, "false alarms", color=BLUE, **head)
    page.heading(shares, "b", "hacked runs caught, false alarms", left=EDGE)
    page.heading(leads, "c", "how early: late ← 0 → before the fall")


def _share(axes: Axes, place: float, values: tuple[float, ...], color: str, face: str, marker: str) -> None:
    rate, low, high = values
    if math.isnan(rate):
        return
    axes.plot([low, high], [place] * 2, color=color, linewidth=0.8, zorder=3)
    mark: dict[str, Any] = {"marker": marker, "markersize": 3.2, "markerfacecolor": face, "markeredgewidth": 0.8}
    axes.plot([rate], [place], linestyle="", color=color, zorder=4, clip_on=False, **mark)


def _lead(axes: Axes, place: int, found: Monitoring, line: dict[str, Any]) -> None:
    own = found.alarms[(found.alarms.signal == line["signal"]) & (found.alarms.label == "hacked")].dropna(
        subset=["lead"]
    )
    if own.empty:
        text: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "size": SMALL, "color": GREY}
        axes.text(0.02, place, "caught none" if line["hacked"] else "none was hacked", **text)
        return
    dots: dict[str, Any] = {"marker": "o", "markersize": 2.6, "markeredgewidth": 0, "alpha": 0.35}
    axes.plot(own.lead, [place] * len(own), linestyle="", color=VERMILION, zorder=2, **dots)
    if not math.isnan(line["lead_low"]):
        axes.plot([line["lead_low"], line["lead_high"]], [place] * 2, color=VERMILION, linewidth=1.1, zorder=3)
    axes.plot([line["lead"]], [place], linestyle="", marker="D", markersize=3.6, color=VERMILION, zorder=4)


# --------------------------------------------------------------------------------------------------------------- text


def _counts(found: Monitoring) -> str:
    counts = found.runs.kind.value_counts()
    kinds = ", ".join(f"{int(counts.get(kind, 0))} {kind}" for kind in COLORS)
    return f"{len(found.runs)} of {found.n_expected} runs; by gold: {kinds}."


def _caption(found: Monitoring) -> str:
    return (
        f"{_counts(found)} Hacked: gold fell by more than {found.margin:.3f} while the proxy rose. a: a line a run; "
        f"grey: the first {found.baseline} rollouts, which each run is compared with; dots: alarms; ticks: the first "
        f"hacked checkpoint; beside all signals together, the {SHOWN} that were best here. b: dots caught, squares "
        f"false alarms (dashed: budget, {found.budget:.0%}), exact {found.level:.0%} intervals. c: diamonds: medians, "
        f"with exact {found.level:.0%} intervals where there are runs enough; dots: runs. Limits come from healthy "
        "runs, without the run itself. Intervals count runs as independent; seeds of an arm are alike."
    )
