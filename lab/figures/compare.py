"""The headline figure of a comparison: gold by domain, gold against KL, proxy against gold, cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation, Transform, blended_transform_factory

from lab.figures.labels import inches
from lab.figures.page import wrap
from lab.figures.style import (
    BASE,
    FAMILIES,
    GREY,
    SMALL,
    WARNING,
    WHITE,
    WIDTH_INCHES,
    ArmStyle,
    Drawn,
    paper,
    resolve,
)
from lab.tables import ALL, UNVERIFIABLE, VERIFIABLE

# Everything is placed in inches: the figure grows with the number of arms, and its text never shrinks.
ROW, RIGHT, TITLE = 0.158, 0.19, 0.20
PANEL, PANEL_BELOW, BETWEEN = 1.95, 0.57, 0.66
EDGE, KEY = 0.06, 0.34  # beside the names of arms: the edge of the page, and the line and mark of each
STEPS = [1, 2, 2.5, 5, 10]
DASHED: Any = (0, (3, 2))


@dataclass(frozen=True)
class _Picture:
    """What the panels share. ``whole``: the lines of domain ``all``, by arm."""

    fig: Figure
    table: pd.DataFrame
    whole: pd.DataFrame
    seeds: pd.DataFrame
    curves: pd.DataFrame
    styles: Mapping[str, Drawn]
    baseline: str

    @property
    def height(self) -> float:
        return float(self.fig.get_size_inches()[1])

    @property
    def baseline_label(self) -> str:
        return self.styles[self.baseline].label if self.baseline in self.styles else self.baseline

    @property
    def left(self) -> float:
        """Room for the longest name and its key."""
        names = [self.name(name) for name in self.styles] + [FAMILIES[style.family] for style in self.styles.values()]
        return max(*(inches(text, BASE) for text in names), 1.2) + EDGE + KEY + 0.02

    def name(self, arm: str) -> str:
        line, label = self.whole.loc[arm], self.styles[arm].label
        return f"{label}, {_seeds_of(line)}" if line.n_seeds < line.n_expected else label

    def axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        box = (left / WIDTH_INCHES, bottom / self.height, width / WIDTH_INCHES, height / self.height)
        return self.fig.add_axes(box)

    def text(self, left: float, bottom: float, text: str, **style: Any) -> None:
        self.fig.text(left / WIDTH_INCHES, bottom / self.height, text, **{"va": "center", **style})

    def heading(self, left: float, bottom: float, letter: str, text: str) -> None:
        self.text(left, bottom, letter, size=9, weight="bold")
        self.text(left + 0.14, bottom, text)


def headline(
    table: pd.DataFrame,
    seeds: pd.DataFrame,
    curves: pd.DataFrame,
    *,
    arms: Mapping[str, ArmStyle],
    baseline: str = "sft",
    level: float = 0.95,
    note: str | None = None,
) -> Figure:
    """The headline figure, from the tables of ``lab.tables.Comparison``; save it with ``lab.figures.save``.

    (a) gold of each arm and domain, with its interval and the means of its seeds; (b) gold against sqrt(KL from the
    baseline) along training; (c) gold against proxy along training; (d) gold gained against all FLOPs spent.
    Arms without results keep their line, and every arm with fewer seeds than planned says how many it has.

    ``arms``: style by arm; those it does not know are drawn under their own name. ``note`` is printed on the figure.
    ValueError for a table without the aggregate ``all``.
    """
    whole = table[table.domain == ALL].set_index("arm")
    if whole.empty:
        raise ValueError(f"headline: the table has no lines of domain {ALL!r}")
    styles = resolve(arms, whole.index)
    n_lines = len(styles) + len({style.family for style in styles.values()})
    note_height = 0.26 if note else 0.0
    with paper():
        caption = _caption(whole, level, baseline, styles)
        bottom = PANEL_BELOW + 0.115 * caption.count("\n")
        height = bottom + PANEL + BETWEEN + n_lines * ROW + TITLE + note_height
        picture = _Picture(Figure(figsize=(WIDTH_INCHES, height)), table, whole, seeds, curves, styles, baseline)
        _domains(picture, bottom + PANEL + BETWEEN, n_lines * ROW)
        _lower(picture, bottom)
        if note:
            box = {"facecolor": "#FFF3EC", "edgecolor": WARNING, "linewidth": 0.6, "boxstyle": "square,pad=0.25"}
            style = {"ha": "center", "color": WARNING, "bbox": box, "weight": "bold"}
            picture.text(WIDTH_INCHES / 2, height - 0.14, note, **style)
        picture.text(EDGE, 0.05, caption, size=SMALL, color="#444444", va="bottom", linespacing=1.25)
    return picture.fig


# ---------------------------------------------------------------------------------------------------------- panel a


def _domains(picture: _Picture, bottom: float, height: float) -> None:
    """Panel a: a column a domain, a line an arm, a heading a family."""
    table, styles = picture.table, picture.styles
    columns = [name for name in dict.fromkeys(table.domain) if name not in (VERIFIABLE, UNVERIFIABLE)]
    if len(columns) == 2:  # one domain: its mean over domains is itself
        columns.remove(ALL)
    parts = [name for name in columns if name != ALL]
    gap, wide = 0.12, 1.6  # the mean over domains has the narrowest intervals: more room, and limits of its own
    unit = (WIDTH_INCHES - picture.left - RIGHT - gap * (len(columns) - 1)) / (
        len(parts) + wide * (len(columns) - len(parts))
    )
    places, heads = _lines(styles)
    left = picture.left
    for domain in columns:
        width = unit * (wide if domain == ALL else 1.0)
        axes = picture.axes(left, bottom, width, height)
        left += width + gap
        axes.set_xlim(_limits(picture, [ALL] if domain == ALL else parts))
        axes.set_ylim(max(places.values()) + 0.6, -0.5)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        _narrow_ticks(axes, width)
        axes.set_title("all domains" if domain == ALL else domain, weight="bold" if domain == ALL else "normal")
        axes.set_facecolor("#F4F4F4" if domain == ALL else WHITE)
        _column(axes, picture, domain, places)
        if domain == columns[0]:
            _names(axes, picture, places, heads)
    picture.heading(EDGE, bottom + height + 0.09, "a", "gold utility by domain")
    middle = (picture.left + WIDTH_INCHES - RIGHT) / 2
    picture.text(middle, bottom - 0.25, f"gold utility (dashed: {picture.baseline_label})", ha="center")


def _lines(styles: Mapping[str, Drawn]) -> tuple[dict[str, float], dict[str, float]]:
    """The line of each arm and of each family's heading, counted from the top."""
    places: dict[str, float] = {}
    heads: dict[str, float] = {}
    for name, style in styles.items():
        if style.family not in heads:
            heads[style.family] = float(len(heads) + len(places))
        places[name] = float(len(heads) + len(places))
    return places, heads


def _limits(picture: _Picture, domains: list[str]) -> tuple[float, float]:
    lines = picture.table[picture.table.domain.isin(domains)]
    points = picture.seeds.gold[picture.seeds.domain.isin(domains)]
    low, high = min(lines.gold_low.min(), points.min()), max(lines.gold_high.max(), points.max())
    margin = max(0.06 * (high - low), 0.01)  # all equal: a readable axis all the same
    return low - margin, high + margin


def _narrow_ticks(axes: Axes, width: float) -> None:
    """As many ticks as there is room for: no label touches another, nor reaches far over an end of the axis."""
    low, high = axes.get_xlim()
    chosen: list[tuple[float, str]] = []
    for bins in (5, 4, 3, 2):
        ticks = [float(tick) for tick in MaxNLocator(bins, steps=STEPS).tick_values(low, high)]
        digits = max(len(f"{tick:.6f}".rstrip("0").partition(".")[2]) for tick in ticks)
        half = max(inches(f"{tick:.{digits}f}", SMALL) for tick in ticks) / 2 + 0.015
        places = {tick: (tick - low) / (high - low) * width for tick in ticks}
        inside = [tick for tick in ticks if max(0.0, half - 0.05) <= places[tick] <= width - max(0.0, half - 0.05)]
        for every in (inside, inside[::2], inside[1::2]):
            clear = all(places[right] - places[left] >= 2 * half for left, right in itertools.pairwise(every))
            if clear and len(every) > len(chosen):
                chosen = [(tick, f"{tick:.{digits}f}".replace("-", "−")) for tick in every]
    axes.set_xticks([tick for tick, _ in chosen], [label for _, label in chosen])


def _column(axes: Axes, picture: _Picture, domain: str, places: Mapping[str, float]) -> None:
    lines = picture.table[picture.table.domain == domain].set_index("arm")
    if picture.baseline in lines.index and not math.isnan(lines.gold[picture.baseline]):
        axes.axvline(lines.gold[picture.baseline], color=GREY, linewidth=0.6, linestyle=DASHED, zorder=1)
    for name, style in picture.styles.items():
        line, place = lines.loc[name], places[name]
        if math.isnan(line.gold):
            under = {"facecolor": axes.get_facecolor(), "edgecolor": "none", "pad": 0.6}
            where: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "center", "va": "center"}
            axes.text(0.5, place, "no result", size=SMALL, color=WARNING, style="italic", bbox=under, **where)
            continue
        own = picture.seeds[(picture.seeds.arm == name) & (picture.seeds.domain == domain)]
        if len(own) > 1:
            dots: dict[str, Any] = {"marker": "o", "markersize": 1.9, "markeredgewidth": 0.0}
            axes.plot(own.gold, [place + 0.33] * len(own), linestyle="", color=style.color, zorder=2, **dots)
        ends = [line.gold_low, line.gold_high]
        axes.plot(ends, [place, place], color=style.color, linewidth=1.1, zorder=3, solid_capstyle="butt")
        _mark(axes, line.gold, place, style, 4.0 if domain == ALL else 3.3)


def _names(axes: Axes, picture: _Picture, places: Mapping[str, float], heads: Mapping[str, float]) -> None:
    """Left of panel a: the names of the arms with their lines and marks. It is the legend of all panels."""
    base = blended_transform_factory(axes.transAxes, axes.transData)

    def left_by(inches: float) -> Transform:
        return base + ScaledTranslation(-inches, 0, picture.fig.dpi_scale_trans)

    for family, place in heads.items():
        style: dict[str, Any] = {"ha": "right", "va": "center", "size": SMALL, "weight": "bold", "color": "#444444"}
        axes.text(0, place, FAMILIES[family], transform=left_by(0.07), **style)
    for name, drawn in picture.styles.items():
        line, place = picture.whole.loc[name], places[name]
        short = line.n_seeds < line.n_expected
        color = WARNING if short else "#000000"
        axes.text(0, place, picture.name(name), transform=left_by(KEY), ha="right", va="center", size=BASE, color=color)
        ends = (left_by(0.30), left_by(0.07))
        start, stop = (end.transform((0.0, place)) for end in ends)
        inverse = base.inverted()
        (x0, y0), (x1, y1) = inverse.transform(start), inverse.transform(stop)
        if drawn.joined and name != picture.baseline:
            stroke = {"color": drawn.color, "linestyle": drawn.linestyle, "linewidth": 0.9, "clip_on": False}
            axes.plot([x0, x1], [y0, y1], transform=base, **stroke)
        _mark(axes, (x0 + x1) / 2, place, drawn, 4.2, base)


def _seeds_of(line: pd.Series) -> str:
    return f"{line.n_seeds:.0f} of {line.n_expected:.0f} seeds"


# ------------------------------------------------------------------------------------------------------ panels b to d


def _lower(picture: _Picture, bottom: float) -> None:
    left, shared, gap = 0.46, 0.26, 0.52  # b and c share their vertical axis
    width = (WIDTH_INCHES - left - RIGHT - shared - gap) / 3
    distance = picture.axes(left, bottom, width, PANEL)
    proxy = picture.axes(left + width + shared, bottom, width, PANEL)
    cost = picture.axes(left + 2 * width + shared + gap, bottom, width, PANEL)
    start = picture.whole.gold.get(picture.baseline, math.nan)
    for axes in (distance, proxy):
        if not math.isnan(start):
            axes.axhline(start, color=GREY, linewidth=0.6, linestyle=DASHED, zorder=1)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    with_proxy = 0
    for name, style in picture.styles.items():
        own = picture.curves[picture.curves.arm == name] if len(picture.curves) else picture.curves
        if own.empty:
            continue
        _path(distance, own, "sqrt_kl", style)
        if own.proxy.notna().all():
            _path(proxy, own, "proxy", style)
            with_proxy += 1
    if not with_proxy:
        _empty(proxy, "no proxy scores")
    single = picture.table.domain.nunique() <= 3  # one domain and its aggregates
    distance.set_ylabel("gold utility" if single else "gold utility, all domains")
    distance.set_xlabel(f"√KL from {picture.baseline_label} (√nats per sequence)")
    proxy.set_xlabel("proxy: reward model's score")
    proxy.set_ylim(distance.get_ylim())
    proxy.tick_params(labelleft=False)
    _costs(cost, picture)
    titles = ("gold along training", "gold against proxy", "gold against cost")
    for letter, title, axes in zip("bcd", titles, (distance, proxy, cost), strict=True):
        picture.heading(axes.get_position().x0 * WIDTH_INCHES, bottom + PANEL + 0.10, letter, title)


def _path(axes: Axes, own: pd.DataFrame, x: str, style: Drawn) -> None:
    """An arm's checkpoints: a line with small marks, and its end point with an interval."""
    end = own.iloc[-1]
    order = 2 if style.family == "control" else 3
    if style.joined:
        stroke = {"color": style.color, "linestyle": style.linestyle, "linewidth": 0.9}
        axes.plot(own[x], own.gold, zorder=order, **stroke)
    for point in own.iloc[1:-1].itertuples():
        _mark(axes, float(getattr(point, x)), float(point.gold), style, 2.4 if style.joined else 3.4, order=order)
    axes.plot([end[x]] * 2, [end.gold_low, end.gold_high], color=style.color, linewidth=0.9, zorder=order)
    _mark(axes, end[x], end.gold, style, 4.6, order=order + 2)


def _costs(axes: Axes, picture: _Picture) -> None:
    axes.axhline(0, color=GREY, linewidth=0.6, linestyle=DASHED, zorder=1)
    axes.set(xlabel="training + sampling FLOPs", ylabel=f"gold gained over {picture.baseline_label}")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    spent = []
    for name, style in picture.styles.items():
        line = picture.whole.loc[name]
        if name == picture.baseline or math.isnan(line.gold_delta) or not line.total_flops > 0:
            continue
        spent.append(line.total_flops)
        ends = [line.gold_delta_low, line.gold_delta_high]
        axes.plot([line.total_flops] * 2, ends, color=style.color, linewidth=0.9)
        _mark(axes, line.total_flops, line.gold_delta, style, 4.6)
    if not spent:
        _empty(axes, "no costs recorded")
        return
    axes.set_xscale("log")
    low, high = min(spent) / 1.5, max(spent) * 1.5
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _empty(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)


# Pointed marks look smaller than round ones of the same size.
_SCALE: Mapping[str, float] = {"^": 1.2, "v": 1.2, "<": 1.25, ">": 1.25, "P": 1.25, "X": 1.2, "d": 1.3, "*": 1.4}


def _mark(
    axes: Axes, x: float, y: float, style: Drawn, size: float, transform: Transform | None = None, order: int = 4
) -> None:
    hollow, small = style.face == WHITE, size < 3
    extra: dict[str, Any] = {} if transform is None else {"transform": transform, "clip_on": False}
    axes.plot(
        [x],
        [y],
        linestyle="",
        marker=style.marker,
        markersize=size * _SCALE.get(style.marker, 1.0),
        markerfacecolor=style.face,
        markeredgecolor=style.color if hollow else WHITE,
        markeredgewidth=(0.5 if small else 0.8) if hollow else (0.0 if small else 0.3),
        zorder=order,
        **extra,
    )


def _caption(whole: pd.DataFrame, level: float, baseline: str, styles: Mapping[str, Drawn]) -> str:
    counts = sorted({int(count) for name, count in whole.n_expected.items() if name != baseline}) or [1]
    planned = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    seeds = f"{planned} policy seed{'s' if counts[-1] > 1 else ''} an arm"
    over = "policy seeds and prompts" if counts[-1] > 1 else "prompts only (one seed)"
    text = f"{seeds} planned. Bars: {level:.0%} bootstrap intervals over {over}. "
    text += "Dots below a bar: means of single seeds. " if counts[-1] > 1 else ""
    text += "b, c: small marks are checkpoints (best-of-N: smaller N), large marks the end. d: reward model included."
    short = [
        f"{styles[str(name)].label} ({_seeds_of(line)})"
        for name, line in whole.loc[list(styles)].iterrows()
        if line.n_seeds < line.n_expected
    ]
    if short:
        text += " Incomplete: " + ", ".join(short) + "."
    return wrap(text, WIDTH_INCHES - 2 * EDGE)
