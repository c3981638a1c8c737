"""The figure of a sweep over reward-model sizes: accuracy, best-of-n and PPO against parameters, and their slopes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from lab.figures.labels import inches
from lab.figures.page import wrap
from lab.figures.style import BASE, BLACK, BLUE, GREY, SMALL, VERMILION, WARNING, WHITE, WIDTH_INCHES, paper
from lab.tables.sweep import ACCURACIES, WORTH_HAVING

EDGE, LEFT, RIGHT, GAP = 0.06, 0.48, 0.14, 0.48
PANEL, BELOW, ROW, TITLE, BETWEEN = 1.75, 0.42, 0.158, 0.22, 0.62
DASHED: Any = (0, (3, 2))
DOTTED: Any = (0, (1, 1.6))


@dataclass(frozen=True)
class _Look:
    color: str
    marker: str
    face: str
    linestyle: Any
    nudge: float  # share of the axis: two intervals at one size must not hide each other


_SETS = (_Look(BLUE, "o", WHITE, (0, (4, 1.4)), -0.007), _Look(VERMILION, "s", VERMILION, "-", 0.007))
_ALL = _Look(BLACK, "D", BLACK, "-", 0.0)


@dataclass(frozen=True)
class _End:
    """The right end of a line of panel a: what its name must not cover, the name, its colour."""

    bottom: float
    top: float
    label: str
    color: str


def size_figure(
    table: pd.DataFrame,
    seeds: pd.DataFrame,
    slopes: pd.DataFrame,
    *,
    ns: Sequence[int],
    level: float = 0.95,
    note: str | None = None,
) -> Figure:
    """The figure, from the tables of ``lab.tables.sweep.SizeSweep``; save it with ``lab.figures.save``.

    (a) accuracy of the reward models; (b) gold gained by best-of-n, n the first of ``ns``, and (c) by PPO, over SFT, on
    each prompt set: all against parameters, with intervals, and every seed as a faint dot; (d) the change per tenfold
    parameters of each, with its verdict. Planned runs without results are counted in the caption, never left out of it.
    ``note`` is printed on the figure. ValueError for an empty table or more than two prompt sets.
    """
    sets = list(dict.fromkeys(table.prompts))
    if not 1 <= len(sets) <= len(_SETS):
        raise ValueError(f"size_figure: expected one or two prompt sets, got {sets}")
    looks = dict(zip(sets, _SETS[-len(sets) :], strict=True))
    best = f"best_of_{ns[0]}"
    shown = _forest(slopes, best, ns[0])
    with paper():
        caption = _caption(table, level, sets)
        bottom = 0.14 + 0.115 * (caption.count("\n") + 1) + 0.3
        upper = bottom + ROW * len(shown) + BETWEEN
        height = upper + PANEL + TITLE + (0.26 if note else 0.0)
        fig = Figure(figsize=(WIDTH_INCHES, height))
        width = (WIDTH_INCHES - LEFT - RIGHT - 2 * GAP) / 3
        boxes = [(LEFT + i * (width + GAP), upper, width, PANEL) for i in range(3)]
        a, b, c = (_axes(fig, *box) for box in boxes)
        _accuracy(a, table, seeds, looks)
        _gain(b, table, seeds, looks, f"{best}_delta")
        _gain(c, table, seeds, looks, "ppo_delta")
        _share_limits(b, c)
        for axes, box, letter, title in zip(
            (a, b, c), boxes, "abc", ("reward-model accuracy", f"best-of-{ns[0]}", "PPO"), strict=True
        ):
            _sizes(axes, table)
            _heading(fig, box[0], box[1] + PANEL + 0.1, letter, title)
        b.set_ylabel("gold gained over SFT")
        c.set_ylabel("gold gained over SFT")
        _key(b, looks)
        _slopes(fig, shown, looks, bottom)
        if note:
            frame = {"facecolor": "#FFF3EC", "edgecolor": WARNING, "linewidth": 0.6, "boxstyle": "square,pad=0.25"}
            fig.text(0.5, 1 - 0.14 / height, note, ha="center", va="center", color=WARNING, weight="bold", bbox=frame)
        style: dict[str, Any] = {"size": SMALL, "color": "#444444", "va": "bottom", "linespacing": 1.25}
        fig.text(EDGE / WIDTH_INCHES, 0.05 / height, caption, **style)
    return fig


def _axes(fig: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    whole = float(fig.get_size_inches()[1])
    return fig.add_axes((left / WIDTH_INCHES, bottom / whole, width / WIDTH_INCHES, height / whole))


def _heading(fig: Figure, left: float, bottom: float, letter: str, text: str) -> None:
    height = float(fig.get_size_inches()[1])
    fig.text(left / WIDTH_INCHES, bottom / height, letter, size=9, weight="bold", va="center")
    fig.text((left + 0.14) / WIDTH_INCHES, bottom / height, text, va="center")


# ------------------------------------------------------------------------------------------------------- panels a to c


def _sizes(axes: Axes, table: pd.DataFrame) -> None:
    """A tick for every size, under its name."""
    known = table.dropna(subset=["parameters"]).drop_duplicates("backbone").sort_values("parameters")
    axes.set_xlabel("reward-model parameters")
    if known.empty:
        axes.set_xticks([])
        return
    axes.set_xscale("log")
    low, high = known.parameters.min(), known.parameters.max()
    margin = max(high / low, 1.5) ** 0.09
    axes.set_xlim(low / margin, high * margin)
    axes.xaxis.set_major_locator(FixedLocator(list(known.parameters)))
    axes.xaxis.set_minor_locator(NullLocator())
    engineering = EngFormatter(sep="", places=None)
    labels = [
        f"{name}\n{engineering(_rounded(size))}" for name, size in zip(known.backbone, known.parameters, strict=True)
    ]
    axes.set_xticks(list(known.parameters), labels)


def _rounded(size: float) -> float:
    """Two figures: 163,904 is drawn as 160k."""
    return float(f"{size:.1e}")


def _accuracy(axes: Axes, table: pd.DataFrame, seeds: pd.DataFrame, looks: Mapping[str, _Look]) -> None:
    """Held-out pairs, and the benchmark's hard and easy parts. The same reward models serve all prompt sets."""
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    lines = table.dropna(subset=["parameters"]).drop_duplicates("backbone").sort_values("parameters")
    dots = seeds.dropna(subset=["parameters"]).drop_duplicates(["backbone", "seed"])
    styles = {
        "accuracy": (_ALL, "held-out pairs"),
        "easy": (_SETS[0], "benchmark, easy"),
        "hard": (_SETS[1], "benchmark, hard"),
    }
    ends: list[_End] = []
    for name, (look, label) in styles.items():
        own = lines.dropna(subset=[name])
        if len(own):
            _series(axes, own, dots, name, look)
            near = own.iloc[-2:]  # what lies under the name
            values = [*near[name], *near[f"{name}_low"].dropna(), *near[f"{name}_high"].dropna()]
            ends.append(_End(min(values), max(values), label, look.color))
    if not ends:
        _empty(axes, "no reward model")
        return
    levels = {name: float(lines[name].mean()) for name in ("chance", "length_only") if lines[name].notna().any()}
    for name, level in levels.items():
        axes.axhline(level, color=GREY, linewidth=0.7, linestyle=DASHED if name == "chance" else DOTTED, zorder=1)
    low, high = axes.get_ylim()
    names = {"chance": "benchmark: chance", "length_only": "benchmark: longer wins"}
    if len(levels) == 2 and abs(levels["chance"] - levels["length_only"]) < 0.05 * (high - low):
        ends.append(_End(min(levels.values()), max(levels.values()), "benchmark: chance, longer wins", GREY))
    else:
        ends += [_End(level, level, names[name], GREY) for name, level in levels.items()]
    axes.set_ylim(low - 0.04 * (high - low), min(high, 1.0) + 0.04 * (high - low))
    _labels_inside(axes, ends)


def _labels_inside(axes: Axes, ends: Sequence[_End]) -> None:
    """Each line's name above its right end, or below where the next line leaves no room above."""
    low, high = axes.get_ylim()
    step = 0.12 / PANEL * (high - low)  # the height of a line of text
    ordered = sorted(ends, key=lambda end: end.top)
    for place, end in enumerate(ordered):
        above = ordered[place + 1].bottom - end.top if place + 1 < len(ordered) else math.inf
        below = end.bottom - ordered[place - 1].top if place else end.bottom - low
        under = above < 1.6 * step and below > above
        y = end.bottom - 0.35 * step if under else end.top + 0.25 * step
        style: dict[str, Any] = {"ha": "right", "va": "top" if under else "bottom", "size": SMALL, "zorder": 6}
        axes.text(0.985, y, end.label, transform=axes.get_yaxis_transform(), color=end.color, **style)
    axes.set_ylim(low, max(high, ordered[-1].top + 1.4 * step))


def _gain(axes: Axes, table: pd.DataFrame, seeds: pd.DataFrame, looks: Mapping[str, _Look], name: str) -> None:
    axes.axhline(0, color=GREY, linewidth=0.6, linestyle=DASHED, zorder=1)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    drawn = 0
    for prompts, look in looks.items():
        own = table[table.prompts == prompts].dropna(subset=["parameters", name]).sort_values("parameters")
        dots = seeds[seeds.prompts == prompts].dropna(subset=["parameters"])
        if len(own):
            _series(axes, own, dots, name, look)
            drawn += 1
    if not drawn:
        _empty(axes, "no result")


def _series(axes: Axes, own: pd.DataFrame, dots: pd.DataFrame, name: str, look: _Look) -> None:
    """Means joined by a line, an interval at each, and the seeds behind them."""
    span = math.log10(max(dots.parameters.max() / dots.parameters.min(), 1.5))
    x = own.parameters.to_numpy(float) * 10 ** (look.nudge * span)
    axes.plot(x, own[name], color=look.color, linestyle=look.linestyle, linewidth=1.1, zorder=4)
    for place, line in zip(x, own.to_dict("records"), strict=True):
        axes.plot([place] * 2, [line[f"{name}_low"], line[f"{name}_high"]], color=look.color, linewidth=1.0, zorder=3)
    axes.plot(
        x, own[name], linestyle="", marker=look.marker, markersize=4.2, markerfacecolor=look.face,
        markeredgecolor=look.color, markeredgewidth=0.9, zorder=5,
    )  # fmt: skip
    many = dots.groupby("backbone")[name].transform("count") > 1
    shown = dots[many & dots[name].notna()]
    places = shown.parameters.to_numpy(float) * 10 ** (span * (3.2 * look.nudge or 0.012))
    style: dict[str, Any] = {"marker": "o", "markersize": 2.2, "markeredgewidth": 0.0, "alpha": 0.45}
    axes.plot(places, shown[name], linestyle="", color=look.color, zorder=2, **style)


def _share_limits(*several: Axes) -> None:
    """The same vertical axis: what best-of-n gains and what PPO gains are to be compared."""
    drawn = [axes for axes in several if len(axes.lines) > 1]
    if drawn:
        low, high = min(axes.get_ylim()[0] for axes in drawn), max(axes.get_ylim()[1] for axes in drawn)
        for axes in drawn:
            axes.set_ylim(low, high + 0.2 * (high - low))  # room for the key of the prompt sets
            axes.text(
                0.015, 0, "SFT", transform=axes.get_yaxis_transform(), size=SMALL, color=GREY, va="bottom", ha="left",
            )  # fmt: skip


def _key(axes: Axes, looks: Mapping[str, _Look]) -> None:
    """The prompt sets, above the lines."""
    for place, (prompts, look) in enumerate(looks.items()):
        top = 0.955 - 0.075 * place
        stroke: dict[str, Any] = {"color": look.color, "transform": axes.transAxes, "clip_on": False}
        axes.plot([0.03, 0.15], [top, top], linestyle=look.linestyle, linewidth=1.1, **stroke)
        mark: dict[str, Any] = {"markerfacecolor": look.face, "markeredgewidth": 0.9, "markersize": 4.2}
        axes.plot([0.09], [top], marker=look.marker, linestyle="", **mark, **stroke)
        axes.text(0.18, top, f"{prompts} prompts", transform=axes.transAxes, size=SMALL, color=look.color, va="center")


def _empty(axes: Axes, text: str) -> None:
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=WARNING, style="italic")


# ------------------------------------------------------------------------------------------------------------- panel d


def _forest(slopes: pd.DataFrame, best: str, n: int) -> list[tuple[str, str, pd.Series]]:
    """(quantity, prompts, line) in the order in which they are drawn."""
    names = {"accuracy": "accuracy, held-out pairs", "easy": "accuracy, benchmark easy"}
    names |= {"hard": "accuracy, benchmark hard", best: f"best-of-{n}", "ppo": "PPO"}
    lines = [(names[line.quantity], line) for _, line in slopes.iterrows() if line.quantity in names]
    order = list(names.values())
    lines = sorted(lines, key=lambda item: order.index(item[0]))
    return [(name, line.prompts, line) for name, line in lines if line.quantity not in ACCURACIES[2:] or line.n_sizes]


def _slopes(
    fig: Figure, shown: Sequence[tuple[str, str, pd.Series]], looks: Mapping[str, _Look], bottom: float
) -> None:
    names = [f"{name}: {prompts}".replace(" - ", " − ") if prompts else name for name, prompts, _ in shown]
    left = max(inches(name, BASE) for name in names) + EDGE + 0.14
    right = 2.0  # for the numbers and verdicts
    axes = _axes(fig, left, bottom, WIDTH_INCHES - left - right, ROW * len(shown))
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=GREY, linewidth=0.6, linestyle=DASHED, zorder=1)
    axes.axvspan(0, WORTH_HAVING, color="#EFEFEF", zorder=0, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("change per tenfold parameters (share of pairs or items right; gold utility)")
    outside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    for place, (name, (_, prompts, line)) in enumerate(zip(names, shown, strict=True)):
        parts = dict(zip(("easy", "hard"), _SETS, strict=True))  # of the benchmark, drawn as in panel a
        look = looks.get(prompts) or parts.get(line.quantity, _ALL)
        axes.text(-0.02, place, name, ha="right", color=look.color, **outside)
        if math.isnan(line.slope):
            axes.text(1.02, place, "not measured", size=SMALL, color=WARNING, style="italic", **outside)
            continue
        axes.plot([line.slope_low, line.slope_high], [place] * 2, color=look.color, linewidth=1.1, zorder=3)
        mark: dict[str, Any] = {
            "markersize": 4.2,
            "markerfacecolor": look.face,
            "markeredgecolor": look.color,
            "markeredgewidth": 0.9,
        }
        axes.plot([line.slope], [place], marker=look.marker, linestyle="", zorder=4, **mark)
        interval = "" if math.isnan(line.slope_low) else f" [{line.slope_low:+.3f}, {line.slope_high:+.3f}]"
        said = f"{line.slope:+.3f}{interval}".replace("-", "−")
        axes.text(1.02, place, said, size=SMALL, **outside)
        bold: dict[str, Any] = {"weight": "bold"} if line.verdict != "open" else {"color": GREY}
        axes.text(1.0 + (right - EDGE) / (WIDTH_INCHES - left - right), place, line.verdict, size=SMALL, ha="right",
                  **bold, **outside)  # fmt: skip
    _heading(fig, EDGE, bottom + ROW * len(shown) + 0.1, "d", "does size buy it?")


# --------------------------------------------------------------------------------------------------------------- text


def _caption(table: pd.DataFrame, level: float, sets: Sequence[str]) -> str:
    complete = table[(table.status == "complete") & (table.n_seeds == table.n_expected)]
    planned = sorted({int(count) for count in table.n_expected})
    seeds = f"{planned[0]}" if len(planned) == 1 else f"{planned[0]} to {planned[-1]}"
    text = f"{len(complete)} of {len(table)} runs, {seeds} seed{'s' if planned[-1] > 1 else ''} each. "
    if planned[-1] > 1:
        text += f"Bars: {level:.0%} intervals, of gold by bootstrap over seeds and prompts, of accuracy by Student's t "
        text += "over seeds. Dots: single seeds. "
    else:
        text += f"Bars: {level:.0%} bootstrap intervals over prompts only: one seed leaves every question open. "
    text += "One SFT checkpoint throughout. "
    text += f"d, supported: the interval lies above 0; refuted: below {WORTH_HAVING:g} (grey band); else open."
    short = [
        f"{line.backbone}, {line.prompts} ({line.status}, {line.n_seeds} of {line.n_expected} seeds)"
        for line in table.itertuples()
        if line.Index not in complete.index
    ]
    if short:
        text += " Incomplete: " + "; ".join(short) + "."
    return wrap(text, WIDTH_INCHES - 2 * EDGE)
