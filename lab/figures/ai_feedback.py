"""The figure of sources of labels: what they are worth, what policies make of them, what revisions gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lab.figures.labels import inches
from lab.figures.page import EDGE, ROW, Page
from lab.figures.style import BASE, BLACK, BLUE, GREEN, GREY, LIGHT_GREY, SMALL, VERMILION, WHITE, WIDTH_INCHES, paper
from lab.tables.ai_feedback import Feedback, summary
from lab.tables.cells import in_order
from lab.tables.comparison import ALL

GAP = 0.2
DRAWN = ("dpo", "ppo_rm")
"""The arms that are trained on every source's labels, a panel each."""


def feedback_figure(found: Feedback, note: str | None = None) -> Figure:
    """A row a source: agreement of its labels with gold (small: by domain), gold gained by DPO and by PPO, labels paid.

    Below, where answers were revised: gold after each round, and the gain of all rounds by domain, a dot a seed.
    """
    quality = summary(found.quality)
    sources = dict(zip(quality.source, quality.label, strict=True))
    revised = len(found.rounds) > 0
    caption = (
        f"Labels: share of pairs that gold decides, Wilson's 95% intervals (over seeds: from the lowest to the highest "
        f"end); grey dots: domains. Gold gained: over SFT, {found.level:.0%} bootstrap intervals over seeds and "
        "prompts; filled: differs from the same arm on the first row's labels (its paired interval leaves out 0)."
    )
    if revised:
        caption += " Revisions: a line or dot a seed, bootstrap intervals over prompts."
    with paper():
        height = ROW * 1.35 * len(sources)
        page = Page.of(
            len(sources), caption, note, panels=[height, 1.15] if revised else [height], above=0.26, below=0.34
        )
        left = max(inches(name, BASE) for name in sources.values()) + EDGE + 0.12
        arms = [arm for arm in DRAWN if (found.arms.arm == arm).any()]
        width = (WIDTH_INCHES - left - 0.92 - GAP * len(arms)) / (1 + len(arms))
        places = {name: float(place) for place, name in enumerate(sources)}
        panels = [page.axes(left + place * (width + GAP), width) for place in range(1 + len(arms))]
        for axes in panels:
            axes.set_ylim(len(places) - 0.5, -0.5)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
        _agreement(panels[0], quality, places)
        page.heading(panels[0], "a", "labels that agree with gold")
        for axes in panels[2:]:
            axes.sharex(panels[1])  # the same gain is as long in every panel
        for axes, arm, letter in zip(panels[1:], arms, "bcd", strict=False):
            _gains(axes, found.arms[found.arms.arm == arm], places)
            page.heading(axes, letter, f"{found.arms.arm_label[found.arms.arm == arm].iloc[0]}: gold gained")
        for name, label in sources.items():
            panels[0].text(-0.03, places[name], label, ha="right", va="center", size=BASE,
                           transform=panels[0].get_yaxis_transform())  # fmt: skip
        _paid(panels[-1], quality[quality.domain == ALL], places)
        if revised:
            middle = WIDTH_INCHES / 2
            rounds = page.axes(EDGE + 0.42, middle - EDGE - 0.62, 1)
            _rounds(rounds, found.rounds)
            page.heading(rounds, "defg"[max(len(arms) - 2, 0)], "gold of drafts and revisions")
            domains = page.axes(middle + 0.62, middle - 0.62 - EDGE - 0.1, 1)
            _domains(domains, found.domains)
            page.heading(domains, "efgh"[max(len(arms) - 2, 0)], "gold gained by revision")
        page.finish()
    return page.fig


def _agreement(axes: Axes, quality: pd.DataFrame, places: Mapping[str, float]) -> None:
    for line in quality.itertuples():
        y = places[str(line.source)]
        value = float(line.agreement_with_gold)  # type: ignore[arg-type]
        if math.isnan(value):
            continue
        if line.domain == ALL:
            _mark(axes, value, y, (line.agreement_with_gold_low, line.agreement_with_gold_high), BLUE, BLUE)
        else:
            axes.plot([value], [y + 0.3], "o", color=LIGHT_GREY, markersize=2.2, zorder=2)
    axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1)
    least = float(quality[["agreement_with_gold", "agreement_with_gold_low"]].min(axis=None))
    axes.set_xlim(min(0.4, least - 0.03), 1.03)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("dashed: chance")


def _gains(axes: Axes, lines: pd.DataFrame, places: Mapping[str, float]) -> None:
    for line in lines.to_dict("records"):
        if math.isnan(line["gold_delta"]):
            continue
        low, high = line["gold_against_low"], line["gold_against_high"]
        differs = not math.isnan(low) and (low > 0 or high < 0)
        ends = (line["gold_delta_low"], line["gold_delta_high"])
        _mark(axes, line["gold_delta"], places[line["source"]], ends, VERMILION, VERMILION if differs else WHITE)
    axes.axvline(0, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("Δ gold from SFT")
    axes.margins(x=0.08)


def _mark(axes: Axes, x: float, y: float, ends: Sequence[Any], color: str, face: str) -> None:
    if not any(math.isnan(float(end)) for end in ends):
        axes.plot([float(end) for end in ends], [y, y], color=color, linewidth=1.1, zorder=3)
    axes.plot([x], [y], "o", markersize=4.2, color=color, markerfacecolor=face, markeredgewidth=0.9, zorder=4)


def _paid(axes: Axes, whole: pd.DataFrame, places: Mapping[str, float]) -> None:
    """Labels and editor's revisions bought, at the right of the last panel."""
    style: dict[str, Any] = {"ha": "right", "va": "center", "size": SMALL}
    for line in whole.itertuples():
        edits = f", {line.demonstrations:,.0f}" if line.demonstrations else ""
        axes.annotate(f"{line.preference_labels:,.0f}{edits}", (1.0, places[str(line.source)]), xytext=(58, 0),
                      xycoords=axes.get_yaxis_transform(), textcoords="offset points", **style)  # fmt: skip
    axes.annotate("labels, edits\nbought", (1.0, 1.0), xytext=(58, 3), xycoords="axes fraction",
                  textcoords="offset points", ha="right", va="bottom", size=SMALL, color=GREY)  # fmt: skip


def _rounds(axes: Axes, rounds: pd.DataFrame) -> None:
    seeds = sorted(rounds.seed.unique())
    for place, seed in enumerate(seeds):
        own = rounds[rounds.seed == seed].sort_values("round")
        x = own["round"] + 0.06 * (place - (len(seeds) - 1) / 2)  # intervals must not hide each other
        bars = [own.gold - own.gold_low, own.gold_high - own.gold]
        axes.errorbar(x, own.gold, yerr=bars, color=GREEN, marker="o", markersize=2.8, linewidth=1.0, elinewidth=0.7)
    last = int(rounds["round"].max())
    axes.set_xticks(range(last + 1), ["draft", *(str(number) for number in range(1, last + 1))])
    axes.set_xlabel("principles met")
    axes.set_ylabel("gold")


def _domains(axes: Axes, domains: pd.DataFrame) -> None:
    names = in_order(domains.domain.unique())
    seeds = sorted(domains.seed.unique())
    for row, name in enumerate(names):
        own = domains[domains.domain == name].set_index("seed")
        for place, seed in enumerate(seeds):
            if seed not in own.index:
                continue
            line = own.loc[seed]
            y = row + 0.16 * (place - (len(seeds) - 1) / 2)
            _mark(axes, line.gain, y, (line.gain_low, line.gain_high), GREEN, GREEN)
    axes.axvline(0, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1)
    axes.set_yticks(range(len(names)), names, color=BLACK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("Δ gold, revision − draft")
