"""Figures of many reward sources: each beside the others, gold against n, what goes with being useful, calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from lab.figures.labels import label_points, panel_inches, spread
from lab.figures.page import EDGE, ROW, Page, empty, inches
from lab.figures.style import (
    BASE,
    BLACK,
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
from lab.tables.reward_models import FAMILIES, MODELS, RewardModels
from lab.tables.reward_models_text import ordered
from lab.tables.voting import PICK, PLAIN, WEIGHTED

STEPS = [1, 2, 2.5, 5, 10]
DASHED: Any = (0, (3, 2))
DOTTED: Any = (0, (1, 1.6))
COLORS: Mapping[str, str] = {"bt": BLUE, "ensemble": GREEN, "other": VERMILION, "rule": PURPLE, "control": GREY}
MARKERS: Mapping[str, str] = {"bt": "o", "ensemble": "s", "other": "D", "rule": "^", "control": "X"}
SERIES = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
"""Of lines in one panel, in turn: solid, then dashed, then dotted."""
ENOUGH = 20
"""Pairs in a bin of the reliability curve that are worth drawing."""
SIDE = 1.42
"""Inches to the right of a panel for the names of its lines."""


# ------------------------------------------------------------------------------------------------- beside one another


def kinds_figure(found: RewardModels, note: str | None = None) -> Figure:
    """A line a candidate, by family: benchmark, its hard half, best-of-n gold, PPO gold, each with its interval.

    Dashed: what chance scores, and the gold of the pool's mean; dotted: what "the longer wins" scores. A candidate with
    fewer seeds than planned says how many it has.
    """
    kinds = ordered(found.kinds)
    n = found.shown[0]
    columns = {
        "rb2": "RB2: best of four",
        "rb2_hard": "RB2: hard half",
        f"bon_{n}": f"best-of-{n}: gold",
        "ppo": "PPO: gold",
    }
    places, heads = _places(kinds)
    with paper():
        caption = (
            f"{found.level:.0%} intervals: of benchmarks over items and seeds, of gold over seeds and prompts. Dashed: "
            f"chance, or the mean of the samples picked from; dotted: “the longer wins”. Filled: differs from "
            f"{_label(found, found.baseline)} (p < 0.05 after Holm over all candidates: McNemar's test on items, a "
            f"paired bootstrap on prompts; PPO is not tested)."
        )
        page = Page.of(len(places) + len(heads), caption, note, per_row=ROW, above=0.22, below=0.32)
        left = max(inches(_name(line), BASE) for _, line in kinds.iterrows()) + EDGE + 0.12
        gap = 0.14
        width = (WIDTH_INCHES - left - EDGE - 0.08 - gap * (len(columns) - 1)) / len(columns)
        for place, (column, title) in enumerate(columns.items()):
            axes = page.axes(left + place * (width + gap), width)
            axes.set_ylim(len(places) + len(heads) - 0.4, -0.6)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            page.heading(axes, "abcd"[place], title)
            _dots(axes, kinds, column, places, found)
            if place == 0:
                _row_names(axes, kinds, places, heads)
        page.finish()
    return page.fig


def _places(kinds: pd.DataFrame) -> tuple[dict[str, float], dict[str, float]]:
    """The row of each candidate, and of each family's heading."""
    places: dict[str, float] = {}
    heads: dict[str, float] = {}
    for line in kinds.itertuples():
        if line.family not in heads:
            heads[str(line.family)] = float(len(heads) + len(places))
        places[str(line.candidate)] = float(len(heads) + len(places))
    return places, heads


def _name(line: pd.Series) -> str:
    return (
        str(line.label)
        if line.n_seeds == line.n_expected
        else f"{line.label}, {line.n_seeds} of {line.n_expected} seeds"
    )


def _dots(axes: Axes, kinds: pd.DataFrame, column: str, places: Mapping[str, float], found: RewardModels) -> None:
    known = kinds.dropna(subset=[column])
    if known.empty:
        empty(axes, "no result")
        return
    for place in places.values():
        axes.axhline(place, color="#EEEEEE", linewidth=0.5, zorder=0)
    for level, style in _levels(kinds, column, found):
        axes.axvline(level, color=GREY, linewidth=0.7, linestyle=style, zorder=1)
    for _, line in known.iterrows():
        place, color = places[line.candidate], COLORS[line.family]
        axes.plot([line[f"{column}_low"], line[f"{column}_high"]], [place] * 2, color=color, linewidth=1.1, zorder=3)
        p = line.get(f"{column}_p_holm", math.nan)
        face = color if p < 0.05 or line.candidate == found.baseline else WHITE
        _mark(axes, line[column], place, line.family, face)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    if column.startswith("rb"):
        axes.set_xlabel("share right")
    else:
        axes.set_xlabel("gold utility")


def _levels(kinds: pd.DataFrame, column: str, found: RewardModels) -> list[tuple[float, Any]]:
    """What a candidate must beat: dashed and dotted lines."""
    if column.startswith("rb"):
        lines = [
            (kinds[f"{column}_{name}"].dropna(), style) for name, style in (("chance", DASHED), ("longer_wins", DOTTED))
        ]
        return [(float(values.iloc[0]), style) for values, style in lines if len(values)]
    start = found.curves[found.curves.n == 1].gold.dropna()
    return [(float(start.iloc[0]), DASHED)] if len(start) else []


def _mark(axes: Axes, x: float, y: float, family: str, face: str, size: float = 4.0) -> None:
    style: dict[str, Any] = {"markersize": size, "markeredgewidth": 0.9, "markeredgecolor": COLORS[family]}
    axes.plot([x], [y], linestyle="", marker=MARKERS[family], markerfacecolor=face, zorder=5, **style)


def _row_names(axes: Axes, kinds: pd.DataFrame, places: Mapping[str, float], heads: Mapping[str, float]) -> None:
    where: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center"}
    for family, place in heads.items():
        axes.text(-0.04, place, FAMILIES[family][0], size=SMALL, weight="bold", color=COLORS[family], **where)
    for _, line in kinds.iterrows():
        short = line.n_seeds < line.n_expected
        axes.text(-0.04, places[line.candidate], _name(line), color=WARNING if short else BLACK, **where)


# --------------------------------------------------------------------------------------------------- gold against n


def best_of_n_figure(found: RewardModels, note: str | None = None) -> Figure:
    """Gold against n (a: Bradley-Terry and ensembles; b: the other kinds), and on the verifiable domains the share
    right by picking (c) and by weighted votes (d), with the plain majority."""
    kinds = ordered(found.kinds)
    beside = list(kinds.candidate[kinds.kind.isin(["gold", "random"])])
    first = [*kinds.candidate[kinds.family.isin(["bt", "ensemble"])], *beside]
    others = list(kinds.candidate[kinds.family.isin(["other", "rule", "control"])])
    second = [found.baseline, *(name for name in others if name not in beside), *beside]
    steps = [name for name in kinds.candidate if kinds.set_index("candidate").kind[name] in ("outcome", "process")]
    voters = [PLAIN, found.baseline, *steps]
    with paper():
        caption = (
            f"Expected gold over all subsets of n samples of one pool. Bars at the largest n: {found.level:.0%} "
            "intervals over seeds and prompts. c, d: the domains with a rule verifier; d: a sample's vote for its "
            "answer counts sigmoid(score)."
        )
        page = Page.of(0, caption, note, panels=(2.15, 1.75), above=0.24, below=0.4)
        left, gap = 0.5, 0.34
        width = (WIDTH_INCHES - left - EDGE - gap - 2 * SIDE) / 2
        rights = (left, left + width + SIDE + gap)
        a, b = (page.axes(place, width, panel=0) for place in rights)
        c, d = (page.axes(place, width, panel=1) for place in rights)
        _curves(a, found, first, found.curves, "gold")
        _curves(b, found, second, found.curves, "gold")
        _share_y(a, b)
        for axes, names in ((a, first), (b, second)):
            _end_labels(axes, found, names, found.curves, "gold")
        for axes, rule in ((c, PICK), (d, WEIGHTED)):
            own = found.voting[found.voting["rule"].isin([rule, PLAIN])]
            _curves(axes, found, voters, own, "accuracy")
        _share_y(c, d)
        for axes, rule in ((c, PICK), (d, WEIGHTED)):
            own = found.voting[found.voting["rule"].isin([rule, PLAIN])]
            _end_labels(axes, found, voters, own, "accuracy")
        titles = (
            "Bradley-Terry and ensembles",
            "other kinds",
            "verifiable domains: pick",
            "verifiable domains: weighted vote",
        )
        for axes, letter, title in zip((a, b, c, d), "abcd", titles, strict=True):
            page.heading(axes, letter, title)
            axes.set_xlabel("n samples a prompt")
        a.set_ylabel("gold utility")
        c.set_ylabel("share correct")
        page.finish()
    return page.fig


def _look(found: RewardModels, names: Sequence[str], name: str) -> tuple[str, Any]:
    """Colour and line of one curve of a panel."""
    if name in (found.baseline, PLAIN):
        return BLACK, "-" if name == found.baseline else DASHED
    kind = found.kinds.set_index("candidate").kind.get(name)
    if kind in ("gold", "random", "constant", "length"):
        return GREY, {"gold": "-", "random": DASHED, "constant": DOTTED, "length": (0, (4, 1, 1, 1))}[str(kind)]
    own = [one for one in names if one not in (found.baseline, PLAIN)]
    turn, place = divmod(own.index(name), len(SERIES))
    return SERIES[place], ("-", (0, (4, 1.2)), DOTTED)[turn % 3]


def _curves(axes: Axes, found: RewardModels, names: Sequence[str], table: pd.DataFrame, column: str) -> None:
    drawn = [name for name in names if len(table[table.candidate == name].dropna(subset=[column]))]
    if not drawn:
        empty(axes, "no result")
        return
    axes.set_xscale("log", base=2)
    ns = sorted(set(table.n))
    for name in drawn:
        own = table[table.candidate == name].sort_values("n")
        color, style = _look(found, names, name)
        wide = 1.6 if name in (found.baseline, PLAIN) else 1.0
        axes.plot(own.n, own[column], color=color, linestyle=style, linewidth=wide, zorder=4 if wide > 1 else 3)
        end = own.iloc[-1]
        nudge = 2 ** (0.05 * (drawn.index(name) % 4))
        axes.plot(
            [end.n * nudge] * 2, [end[f"{column}_low"], end[f"{column}_high"]], color=color, linewidth=0.6, alpha=0.6
        )
    axes.set_xticks(ns, [str(n) for n in ns])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(min(ns), max(ns) * 2**0.2)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))


def _share_y(first: Axes, second: Axes) -> None:
    drawn = [axes for axes in (first, second) if axes.lines]
    if drawn:
        low, high = min(axes.get_ylim()[0] for axes in drawn), max(axes.get_ylim()[1] for axes in drawn)
        for axes in drawn:
            axes.set_ylim(low, high)


def _end_labels(axes: Axes, found: RewardModels, names: Sequence[str], table: pd.DataFrame, column: str) -> None:
    """Each curve's name to the right of the panel, as near its end as the others allow, with a line to it."""
    ends = {}
    for name in names:
        own = table[table.candidate == name].dropna(subset=[column]).sort_values("n")
        if len(own):
            ends[name] = float(own[column].iloc[-1])
    if not ends:
        return
    low, high = axes.get_ylim()
    height = panel_inches(axes)[1]
    tall = 0.108 / height  # a line of text, in parts of the panel
    wanted = {name: (value - low) / (high - low) for name, value in ends.items()}
    placed = spread(wanted, tall, -0.1, 0.99)
    for name, share in placed.items():
        color, style = _look(found, names, name)
        line: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "color": color}
        axes.plot([1.0, 1.06], [wanted[name], share], linewidth=0.4, **line)
        axes.plot([1.06, 1.15], [share, share], linewidth=1.2, linestyle=style, **line)
        text = "Majority vote" if name == PLAIN else _label(found, name)
        axes.text(1.17, share, text, transform=axes.transAxes, size=SMALL, va="center", color=color)


# ---------------------------------------------------------------------------------------- what goes with being useful


def association_figure(found: RewardModels, note: str | None = None) -> Figure:
    """A labelled dot a reward model: the benchmark (left) and its hard half (right) against best-of-n gold (top) and
    PPO gold (bottom), with Spearman's correlation and its interval."""
    n = found.shown[0]
    models = ordered(found.kinds)
    models = models[models.family.isin(MODELS)]
    outcomes = {f"bon_{n}": f"best-of-{n}: gold", "ppo": "PPO: gold"}
    predictors = {"rb2": "RB2: best of four, share right", "rb2_hard": "RB2: hard half, share right"}
    lines = found.association[found.association["over"] == "reward models"].set_index(["outcome", "predictor"])
    with paper():
        caption = (
            f"A dot is the mean over the seeds of one reward model; faint bars: {found.level:.0%} intervals. ρ: "
            "Spearman's, with its interval over reward models drawn with replacement. Open: another lineage than the "
            "policy's. Dashed: gold of the SFT samples themselves."
        )
        page = Page.of(0, caption, note, panels=(2.75, 2.35), above=0.24, below=0.4)
        left = 0.54
        width = (WIDTH_INCHES - left - EDGE - 0.42) / 2
        letters = iter("abcd")
        for row, (outcome, text) in enumerate(outcomes.items()):
            for place, (predictor, words) in enumerate(predictors.items()):
                axes = page.axes(left + place * (width + 0.42), width, panel=row)
                line = lines.loc[(outcome, predictor)]
                known = models.dropna(subset=[outcome, predictor])
                _scatter(axes, known, predictor, outcome, found)
                page.heading(axes, next(letters), f"{text.split(':')[0]}: {_correlation(line)}")
                axes.set_xlabel(words)
                if place == 0:
                    axes.set_ylabel(text.replace(":", ""))
        page.finish()
    return page.fig


def _correlation(line: pd.Series) -> str:
    if math.isnan(line.spearman):
        return "too few reward models"
    ends = "" if math.isnan(line.spearman_low) else f" [{line.spearman_low:+.2f}, {line.spearman_high:+.2f}]"
    return f"ρ = {line.spearman:+.2f}{ends}, {line.n_models:.0f} reward models".replace("-", "−")


def _scatter(axes: Axes, known: pd.DataFrame, x: str, y: str, found: RewardModels) -> None:
    if known.empty:
        empty(axes, "no result")
        return
    for level, style in _levels(found.kinds, y, found):
        axes.axhline(level, color=GREY, linewidth=0.7, linestyle=style, zorder=1)
    for _, line in known.iterrows():
        color = COLORS[line.family]
        faint: dict[str, Any] = {"color": color, "linewidth": 0.5, "alpha": 0.35, "zorder": 2}
        axes.plot([line[f"{x}_low"], line[f"{x}_high"]], [line[y]] * 2, **faint)
        axes.plot([line[x]] * 2, [line[f"{y}_low"], line[f"{y}_high"]], **faint)
        _mark(axes, line[x], line[y], line.family, color if line.own_lineage else WHITE, 3.6)
    axes.margins(0.12)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=STEPS))
    points = [(float(line[x]), float(line[y])) for _, line in known.iterrows()]
    label_points(axes, points, list(known.label), [COLORS[family] for family in known.family])


# --------------------------------------------------------------------------------------------------------- calibration


def calibration_figure(found: RewardModels, note: str | None = None) -> Figure:
    """(a) How often a reward model is right where it says it is so sure, for those that state log-odds; (b) expected
    calibration error of all, as stated and after one temperature."""
    kinds = ordered(found.kinds).dropna(subset=["ece_fitted"])
    stated = found.calibration[found.calibration["scale"] == "stated"]
    names = [name for name in kinds.candidate if name in set(stated.candidate)]
    with paper():
        caption = (
            "Pairs of SFT samples of one prompt, in their true order, the same for all. Confidence: sigmoid of the "
            f"stated log-odds, read from the side that the model prefers; bins of at least {ENOUGH} pairs. Bars: "
            f"{found.level:.0%} intervals over prompts. b: filled, as stated; open, after one temperature fitted to "
            "the same pairs (none where no confidence is warranted). The error of few pairs is biased upwards."
        )
        page = Page.of(len(kinds), caption, note, per_row=ROW, above=0.24, below=0.36, least=2.4)
        width = 2.3
        a = page.axes(0.46, width)
        _reliability(a, found, stated, names)
        labels = max((inches(str(label), BASE) for label in kinds.label), default=1.0)
        left = 0.46 + width + SIDE + labels + 0.2
        b = page.axes(left, WIDTH_INCHES - left - EDGE - 0.1)
        _errors(b, kinds)
        page.heading(a, "a", "confidence and truth, as stated")
        page.heading(b, "b", "calibration error", left=left - labels - 0.1)
        page.finish()
    return page.fig


def _reliability(axes: Axes, found: RewardModels, stated: pd.DataFrame, names: Sequence[str]) -> None:
    if not names:
        empty(axes, "no source states log-odds")
        return
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=0.7, linestyle=DASHED, zorder=1)
    ends = {}
    for name in names:
        own = stated[stated.candidate == name].sort_values("confidence")
        own = own[own.pairs >= min(ENOUGH, own.pairs.max())]
        color, style = _look(found, names, name)
        wide = 1.6 if name == found.baseline else 0.9
        axes.plot(
            own.confidence, own.accuracy, color=color, linestyle=style, linewidth=wide, marker="o", markersize=2.0
        )
        if name == found.baseline:
            for bin_ in own.itertuples():
                axes.plot([bin_.confidence] * 2, [bin_.accuracy_low, bin_.accuracy_high], color=color, linewidth=0.8)
        ends[name] = (float(own.confidence.iloc[-1]), float(own.accuracy.iloc[-1]))
    axes.set_xlim(0.5, 1.0)
    axes.set_xlabel("confidence that the preferred one is better")
    axes.set_ylabel("share right")
    low, high = axes.get_ylim()
    height = panel_inches(axes)[1]
    wanted = {name: (end[1] - low) / (high - low) for name, end in ends.items()}
    for name, share in spread(wanted, 0.108 / height, -0.06, 1.06).items():
        color, style = _look(found, names, name)
        to_data = (ends[name][0] - 0.5) / 0.5
        line: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "color": color}
        axes.plot([to_data, 1.05], [wanted[name], share], linewidth=0.35, alpha=0.7, **line)
        axes.plot([1.05, 1.13], [share, share], linewidth=1.2, linestyle=style, **line)
        axes.text(1.15, share, _label(found, name), transform=axes.transAxes, size=SMALL, va="center", color=color)
    axes.set_ylim(low, high)


def _errors(axes: Axes, kinds: pd.DataFrame) -> None:
    if kinds.empty:
        empty(axes, "no result")
        return
    axes.set_ylim(len(kinds) - 0.4, -0.6)
    axes.set_yticks(range(len(kinds)), list(kinds.label))
    axes.tick_params(axis="y", length=0, labelsize=BASE)
    axes.spines["left"].set_visible(False)
    for place, (_, line) in enumerate(kinds.iterrows()):
        color = COLORS[line.family]
        for column, shift, face in (("ece_stated", -0.14, color), ("ece_fitted", 0.14, WHITE)):
            if math.isnan(line[column]):
                continue
            ends = [line[f"{column}_low"], line[f"{column}_high"]]
            axes.plot(ends, [place + shift] * 2, color=color, linewidth=0.9, zorder=3)
            _mark(axes, line[column], place + shift, line.family, face, 3.2)
    axes.set_xlim(left=-0.03 * axes.get_xlim()[1])
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.set_xlabel("expected calibration error")


def _label(found: RewardModels, candidate: str) -> str:
    return str(found.kinds.set_index("candidate").label.get(candidate, candidate))
