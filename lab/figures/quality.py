"""The figure of the data-quality sweep: gold against quality, where the curves cross, data against algorithm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from lab.figures.labels import inches, panel_inches, spread
from lab.figures.page import EDGE, ROW, Page, empty
from lab.figures.style import (
    BASE,
    BLACK,
    BLUE,
    COMPARE_ARMS,
    GREY,
    SMALL,
    WARNING,
    WHITE,
    WIDTH_INCHES,
    Drawn,
    paper,
    resolve,
)
from lab.tables.quality import AXES, FAMILIES, PRESETS, Quality, on_axis
from lab.tables.quality_text import NAMES, RLVR, p_said, place_said

STRIP, SPACE, SIDE, LEFT = 0.48, 0.05, 0.66, 0.48
UPPER, LOWER, ABOVE, BELOW = 2.35, 1.65, 0.26, 0.47
LONG = 12
STEPS = [1, 2, 2.5, 5, 10]
DASHED: Any = (0, (3, 2))
DOTTED: Any = (0, (1, 1.6))
SHOWN = (("dpo", "ppo"), ("dpo", "rlvr"), ("ppo", "rlvr"))
"""The pairs of curves whose crossings have a line under the panels; the table has the others too."""


def quality_figure(found: Quality, note: str | None = None) -> Figure:
    """The figure; save it with ``lab.figures.save``.

    Gold of DPO and PPO x RM against (a) the flip rate and (b) the number of pairs, and under each where the curves
    cross; (c) on the presets; lines: what needs no preferences. (d) Accuracy of the reward models against the flip
    rate. (e) The effect of data against that of the algorithm. Intervals everywhere. Planned points without results are
    counted in the caption, never left out of it. ``note`` is printed on the figure.
    """
    styles = resolve(COMPARE_ARMS, [*FAMILIES.values(), *found.lines.arm])
    effects = _effect_lines(found.effects)
    with paper():
        panels = (UPPER, LOWER, ROW * max(len(effects), 2))
        page = Page.of(0, _caption(found), note, panels=panels, above=ABOVE, below=BELOW)
        width = (WIDTH_INCHES - LEFT - EDGE - 2 * SIDE - 0.3) / 2
        second = LEFT + width + SIDE + 0.3
        a, below_a = _with_strip(page, LEFT, width)
        b, below_b = _with_strip(page, second, width)
        c, d = page.axes(LEFT, width, panel=1), page.axes(second, width, panel=1)
        ends = {axis: _curves(axes, found, axis, styles) for axes, axis in ((a, "flips"), (b, "pairs"))}
        _presets(c, found, styles)
        _share_y([axes for axes in (a, b, c) if axes.lines])
        for axes, axis in ((a, "flips"), (b, "pairs")):
            _names(axes, ends[axis])
        _names(c, {_line_name(line): line["gold"] for line in found.lines.to_dict("records")} if c.lines else {})
        for strip, axes, axis in ((below_a, a, "flips"), (below_b, b, "pairs")):
            _crossings(strip, axes, found.crossings, axis)
        _accuracy(d, found)
        _effects(page, effects)
        titles = (
            "labels turned round",
            f"number of pairs{_at_flips(found)}",
            "presets",
            f"reward models{_trend(found)}",
        )
        for axes, letter, title in zip((a, b, c, d), "abcd", titles, strict=True):
            page.heading(axes, letter, title)
        for axes in (a, c):
            axes.set_ylabel("gold utility")
        page.finish()
    return page.fig


def _with_strip(page: Page, left: float, width: float) -> tuple[Axes, Axes]:
    """A panel of the first row, and the strip under it that has its crossings and its ticks."""
    upper, strip = page.axes(left, width), page.axes(left, width)
    box, tall = upper.get_position(), UPPER
    share = (STRIP + SPACE) / tall
    upper.set_position((box.x0, box.y0 + share * box.height, box.width, (1 - share) * box.height))
    strip.set_position((box.x0, box.y0, box.width, STRIP / tall * box.height))
    return upper, strip


# ------------------------------------------------------------------------------------------------------- panels a to c


def _line_name(line: Mapping[str, Any]) -> str:
    """What a line without preferences is called: SFT, RLVR, or the arm's own name where there are two of RLVR."""
    return {"sft": "SFT", "rlvr": "RLVR"}.get(str(line["role"]), RLVR.get(str(line["arm"]), str(line["arm"])))


def _curves(axes: Axes, found: Quality, axis: str, styles: Mapping[str, Drawn]) -> dict[str, float]:
    """Both families over one axis, and the lines; returns name -> value at the right end."""
    points, column = on_axis(found.table, axis), AXES[axis]
    drawn = [family for family in FAMILIES if points[family].notna().any()]
    if not drawn:
        empty(axes, "no result")
        return {}
    ends = _lines(axes, found, styles)
    x_all = points.loc[points[list(FAMILIES)].notna().any(axis=1), column].to_numpy(float)
    _x_axis(axes, axis, x_all)
    for family in drawn:
        own = points.dropna(subset=[family])
        style = styles[FAMILIES[family]]
        x = own[column].to_numpy(float)
        band: dict[str, Any] = {"color": style.color, "alpha": 0.16, "linewidth": 0, "zorder": 2}
        axes.fill_between(x, own[f"{family}_low"], own[f"{family}_high"], **band)
        axes.plot(x, own[family], color=style.color, linewidth=1.3, zorder=4)
        for place, line in zip(x, own.to_dict("records"), strict=True):
            _interval(axes, place, line, family, style)
            seeds = found.seeds.loc[found.seeds.quality == line["quality"], family].dropna()
            if len(seeds) > 1:
                _seeds(axes, np.full(len(seeds), place), seeds, style.color)
        ends[NAMES[family]] = float(own[family].iloc[-1])
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    return ends


def _lines(axes: Axes, found: Quality, styles: Mapping[str, Drawn]) -> dict[str, float]:
    ends = {}
    for line in found.lines.to_dict("records"):
        style = styles[str(line["arm"])]
        dashes = DOTTED if line["role"] == "sft" else DASHED
        axes.axhline(line["gold"], color=style.color, linewidth=1.0, linestyle=dashes, zorder=3)
        axes.axhspan(line["gold_low"], line["gold_high"], color=style.color, alpha=0.07, linewidth=0, zorder=1)
        ends[_line_name(line)] = float(line["gold"])
    return ends


def _interval(axes: Axes, x: float, line: Mapping[str, Any], name: str, style: Drawn) -> None:
    axes.plot([x, x], [line[f"{name}_low"], line[f"{name}_high"]], color=style.color, linewidth=1.0, zorder=4)
    mark: dict[str, Any] = {"markerfacecolor": style.face, "markeredgecolor": style.color, "markeredgewidth": 0.9}
    axes.plot([x], [line[name]], linestyle="", marker=style.marker, markersize=4.2, zorder=5, **mark)


def _seeds(axes: Axes, x: Any, values: Any, color: str) -> None:
    dots: dict[str, Any] = {"marker": "o", "markersize": 2.0, "markeredgewidth": 0.0, "alpha": 0.4}
    axes.plot(x, values, linestyle="", color=color, zorder=3, **dots)


def _x_axis(axes: Axes, axis: str, x: Sequence[float] | np.ndarray) -> None:
    """Limits a little beyond the points, a tick at each."""
    ticks = sorted(set(map(float, x)))
    if axis == "pairs":
        axes.set_xscale("log")
        margin = max(ticks[-1] / ticks[0], 1.5) ** 0.06
        axes.set_xlim(ticks[0] / margin, ticks[-1] * margin)
        axes.set_xticks(ticks, [f"{value:,.0f}" for value in ticks])
    else:
        margin = 0.06 * max(ticks[-1] - ticks[0], 0.05)
        axes.set_xlim(ticks[0] - margin, ticks[-1] + margin)
        axes.set_xticks(ticks, [f"{value:.0%}" for value in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelbottom=False)


def _presets(axes: Axes, found: Quality, styles: Mapping[str, Drawn]) -> None:
    """A column a preset, in the order of the sweep, with its measured agreement above its name."""
    own = found.table[found.table.axis == "preset"].reset_index(drop=True)
    known = own[own[list(FAMILIES)].notna().any(axis=1)]
    if known.empty:
        empty(axes, "no result")
        return
    _lines(axes, found, styles)
    for place, line in enumerate(own.to_dict("records")):
        for shift, (family, arm) in zip((-0.13, 0.13), FAMILIES.items(), strict=True):
            if math.isnan(line[family]):
                continue
            _interval(axes, place + shift, line, family, styles[arm])
            seeds = found.seeds.loc[found.seeds.quality == line["quality"], family].dropna()
            if len(seeds) > 1:
                _seeds(axes, np.full(len(seeds), place + 1.9 * shift), seeds, styles[arm].color)
    axes.set_xlim(-0.5, len(own) - 0.5)
    axes.xaxis.set_major_locator(FixedLocator(range(len(own))))
    axes.set_xticks(range(len(own)), [_preset_name(line) for line in own.to_dict("records")])
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))


def _preset_name(line: Mapping[str, Any]) -> str:
    """Its measured agreement, then its name, a long one in two lines."""
    name = str(line["quality"]).replace("_like", "-like").replace("_", " ")
    agreement = "" if math.isnan(line["agreement"]) else f"{line['agreement']:.0%} agree"
    return f"{agreement}\n{name if len(name) < LONG else name.replace('-like', chr(10) + '-like')}"


def _share_y(several: Sequence[Axes]) -> None:
    """The same gold everywhere, so that panels can be compared."""
    if several:
        low, high = min(axes.get_ylim()[0] for axes in several), max(axes.get_ylim()[1] for axes in several)
        for axes in several:
            axes.set_ylim(low, high)


COLORS = {NAMES[family]: COMPARE_ARMS[arm].color for family, arm in FAMILIES.items()}


def _names(axes: Axes, ends: Mapping[str, float]) -> None:
    """Each line's name to the right of the panel, as near its end as the others allow."""
    low, high = axes.get_ylim()
    wanted = {name: (value - low) / (high - low) for name, value in ends.items()}
    for name, share in spread(wanted, 0.12 / panel_inches(axes)[1], 0.0, 1.0).items():
        stroke: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "linewidth": 0.5}
        axes.plot([1.0, 1.03], [wanted[name], share], color=COLORS.get(name) or GREY, **stroke)
        axes.text(1.04, share, name, transform=axes.transAxes, size=SMALL, va="center", color=BLACK)
    axes.set_ylim(low, high)


# ----------------------------------------------------------------------------------------------------------- crossings


def _crossings(strip: Axes, above: Axes, crossings: pd.DataFrame, axis: str) -> None:
    """Where the curves of the panel above cross: a line a pair, with its interval; arrows where it leaves the range."""
    strip.set_yticks([])
    strip.spines["left"].set_visible(False)
    strip.set_ylim(len(SHOWN) - 0.4, -0.6)
    strip.set_xlabel({"flips": "share of labels turned round", "pairs": "preference pairs"}[axis])
    if not above.lines:
        strip.set_xticks([])
        return
    strip.set_xscale(above.get_xscale())
    strip.set_xlim(*above.get_xlim())
    ticks = list(above.get_xticks())
    strip.set_xticks(ticks, [f"{value:.0%}" if axis == "flips" else f"{value:,.0f}" for value in ticks])
    strip.xaxis.set_minor_locator(NullLocator())
    by_pair = {(line["first"], line["second"]): line for line in crossings.to_dict("records") if line["axis"] == axis}
    for place, pair in enumerate(SHOWN):
        first, second = (NAMES[name].removesuffix(" × RM") for name in pair)
        outside: dict[str, Any] = {"transform": strip.get_yaxis_transform(), "va": "center", "size": SMALL}
        strip.text(1.04, place, f"{first} = {second}", **outside)
        line = by_pair.get(pair)
        if line is None or math.isnan(line["at"]):
            share = "not measured" if line is None else f"no crossing in the range ({line['share']:.0%} of resamples)"
            strip.text(0.5, place, share, ha="center", color=GREY, style="italic", **outside)
            continue
        left = line["x_low"] if line["low_beyond"] else line["at_low"]
        right = line["x_high"] if line["high_beyond"] else line["at_high"]
        strip.plot([left, right], [place, place], color=BLACK, linewidth=1.1, zorder=3)
        strip.plot([line["at"]], [place], marker="o", color=BLACK, markersize=3.4, linestyle="", zorder=4)
        for end, beyond, marker in ((left, line["low_beyond"], "<"), (right, line["high_beyond"], ">")):
            if beyond:
                strip.plot([end], [place], marker=marker, color=BLACK, markersize=3.4, linestyle="", zorder=4)


# ------------------------------------------------------------------------------------------------------------- panel d


def _accuracy(axes: Axes, found: Quality) -> None:
    points = on_axis(found.table, "flips")
    axes.set_xlabel("share of labels turned round")
    names = {"accuracy": ("held-out", BLACK, "D", BLACK), "overall": ("benchmark", BLUE, "o", WHITE)}
    ends: dict[str, float] = {}
    for name, (label, color, marker, face) in names.items():
        own = points.dropna(subset=[name])
        if own.empty:
            continue
        style = Drawn(label, "rm", color, marker, face, "-", True)
        axes.plot(own.flip_rate, own[name], color=color, linewidth=1.1, zorder=4)
        for line in own.to_dict("records"):
            _interval(axes, line["flip_rate"], line, name, style)
            seeds = found.seeds.loc[found.seeds.quality == line["quality"], name].dropna()
            if len(seeds) > 1:
                _seeds(axes, np.full(len(seeds), line["flip_rate"]), seeds, color)
        ends[label] = float(own[name].iloc[-1])
    if not ends:
        empty(axes, "no reward model")
        return
    axes.axhline(0.5, color=GREY, linewidth=0.7, linestyle=DASHED, zorder=1)
    _x_axis(axes, "flips", points.flip_rate.to_numpy(float))
    axes.tick_params(axis="x", labelbottom=True)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    axes.set_ylabel("accuracy")
    _names(axes, ends)


def _at_flips(found: Quality) -> str:
    """What the curve over pairs holds fixed."""
    own = on_axis(found.table, "pairs").flip_rate.dropna().unique()
    return f", {own[0]:.0%} of labels turned round" if len(own) == 1 else ""


def _trend(found: Quality) -> str:
    own = found.trends[found.trends.measure == "accuracy"].to_dict("records")
    if not own or math.isnan(own[0]["page_p"]):
        return ""
    words = {"supported": "every step falls", "refuted": "a step rises", "open": "not every step falls"}
    said = words[own[0]["verdict"]]
    if own[0]["verdict"] == "open" and own[0]["falls_each_step"]:
        said = "every step falls, not surely"
    return f": {said} (Page's trend, {p_said(own[0]['page_p'])})"


# ------------------------------------------------------------------------------------------------------------- panel e


def _effect_lines(effects: pd.DataFrame) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, line) in the order in which they are drawn."""
    first, second = (preset.replace("_like", "-like") for preset in PRESETS)
    names = {
        ("data", "dpo"): f"data: {second} − {first}, DPO",
        ("data", "ppo"): f"data: {second} − {first}, PPO × RM",
        ("algorithm", PRESETS[0]): f"algorithm: PPO × RM − DPO, {first}",
        ("algorithm", PRESETS[1]): f"algorithm: PPO × RM − DPO, {second}",
        ("data - algorithm", "sizes"): "size of data − size of algorithm, averages",
        ("data - algorithm", "extremes"): "data's smaller − algorithm's larger",
    }
    by_key = {(line["effect"], line["within"]): line for line in effects.to_dict("records")}
    return [(name, by_key[key]) for key, name in names.items() if key in by_key]


def _effects(page: Page, lines: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    left = max([inches(name, BASE) for name, _ in lines], default=1.0) + EDGE + 0.14
    right = 1.9  # for the numbers and verdicts
    axes = page.axes(left, WIDTH_INCHES - left - right, panel=2)
    page.heading(axes, "e", "data or algorithm?", left=EDGE)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    if not lines:
        empty(axes, f"{' and '.join(PRESETS)} are not complete")
        return
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.axvline(0, color=GREY, linewidth=0.6, linestyle=DASHED, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=STEPS))
    axes.set_xlabel("difference in gold utility")
    outside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    for place, (name, line) in enumerate(lines):
        color = BLACK if line["effect"] == "data - algorithm" else BLUE if line["effect"] == "data" else WARNING
        axes.text(-0.02, place, name, ha="right", color=color, **outside)
        axes.plot([line["value_low"], line["value_high"]], [place] * 2, color=color, linewidth=1.1, zorder=3)
        axes.plot([line["value"]], [place], marker="D", color=color, markersize=3.6, linestyle="", zorder=4)
        said = f"{line['value']:+.3f} [{line['value_low']:+.3f}, {line['value_high']:+.3f}]".replace("-", "−")
        axes.text(1.02, place, said, size=SMALL, **outside)
        if line["effect"] == "data - algorithm":
            bold: dict[str, Any] = {"weight": "bold"} if line["verdict"] != "open" else {"color": GREY}
            end = 1.0 + (right - EDGE) / (WIDTH_INCHES - left - right)
            axes.text(end, place, line["verdict"], size=SMALL, ha="right", **bold, **outside)


# --------------------------------------------------------------------------------------------------------------- text


def _caption(found: Quality) -> str:
    table = found.table
    complete = table[(table.status == "complete") & (table.n_seeds == table.n_expected)]
    planned = sorted({int(count) for count in table.n_expected})
    seeds = f"{planned[0]}" if len(planned) == 1 else f"{planned[0]} to {planned[-1]}"
    text = f"{len(complete)} of {len(table)} points, {seeds} seed{'s' if planned[-1] > 1 else ''} each, one SFT "
    text += f"checkpoint. Bars and bands: {found.level:.0%} intervals, of gold by bootstrap over seeds and prompts, of "
    text += "accuracy by Student's t over seeds; small dots: single seeds. "
    rlvr = found.lines[found.lines.role == "rlvr"]
    if len(rlvr):
        text += f"RLVR: {RLVR[rlvr.arm.iloc[0]]}, the same in every point. "
    said = [
        f"{NAMES[line['first']]} = {NAMES[line['second']]} at {place_said(line)}"
        for line in found.crossings.to_dict("records")
        if line["axis"] == "flips" and (line["first"], line["second"]) in SHOWN and place_said(line)
    ]
    text += "Under a, b: where the curves cross, linear between points"
    text += f" ({'; '.join(said)} turned round). " if said else ". "
    text += "c: agree, the measured share of labels as gold has it. d, dashed: chance on held-out pairs."
    short = [
        f"{line.quality} ({line.status}, {line.n_seeds} of {line.n_expected} seeds)"
        for line in table.itertuples()
        if line.Index not in complete.index
    ]
    return text + (" Incomplete: " + "; ".join(short) + "." if short else "")
