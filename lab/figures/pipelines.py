"""The figure of pipelines: gold after every stage, where a rule can check and where none can, and what was paid."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lab.figures.labels import inches
from lab.figures.page import Page, empty
from lab.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SMALL,
    VERMILION,
    WARNING,
    WIDTH_INCHES,
    paper,
)
from lab.plan import count
from lab.tables import UNVERIFIABLE, VERIFIABLE
from lab.tables.pipelines import Pipelines

ROW = 0.15
BOLD = 1.13
"""How much wider bold text is."""
PANELS = ((VERIFIABLE, "gold, verifiable domains"), (UNVERIFIABLE, "gold, the other domains"))
PAID = {"verifier": (GREEN, "v"), "preferences": (BLUE, "s"), "samples": (BLACK, "D"), "": (GREY, "o")}
"""Colour and marker by what pays a stage; any other reward is a model."""
MODEL, GOLD = (VERMILION, "<"), (ORANGE, "*")
NUMBERS = (("labels", "preference_labels"), ("verifier calls", "verifier_calls"), ("FLOPs", "total_flops"))


def pipelines_figure(found: Pipelines, *, note: str | None = None) -> Figure:
    """The figure; save it with ``lab.figures.save``. ``note``: a line at the top that must not be missed.

    A line for each stage under its pipeline: dots with intervals, joined with the stage before; where pipelines start
    as vertical lines; beside them what had been spent. ValueError if the table has no stage.
    """
    table = found.table
    stages = table[table.pipeline != ""]
    if stages.empty:
        raise ValueError("pipelines_figure: no stage in the table")
    rows = _rows(stages)
    names = [str(name) for name in table.domain.unique()]
    shown = [panel for panel in PANELS if panel[0] in names] or [("all", "gold")]
    seeds = sorted({int(n) for n in stages.n_expected})
    caption = (
        f"Gold after each stage; bars: {found.level:.0%} bootstrap intervals over policy seeds "
        f"({' or '.join(map(str, seeds))}) and prompts. A line leads from the stage before (from a pipeline's first "
        "stage: from where it starts). Colour: what pays the stage. On the right: all that was spent by then, means "
        "over seeds, the base's pretraining left out."
    )
    with paper():
        page = Page.of(len(rows), caption, note, per_row=ROW, above=0.42, below=0.3)
        left = 0.14 + max(inches(label, SMALL) * (BOLD if header else 1) for _, _, label, header in rows)
        widths = [max(inches(title, SMALL), 0.4) + 0.1 for title, _ in NUMBERS]
        room = WIDTH_INCHES - left - 0.12 - sum(widths)
        wide = (room - 0.15 * (len(shown) - 1)) / len(shown)
        for place, (part, title) in enumerate(shown):
            axes = page.axes(left + place * (wide + 0.15), wide)
            _panel(axes, table[table.domain == part], rows)
            page.heading(axes, "ab"[place], title)
            if not place:
                _names(axes, rows)
        _numbers(page, table[table.domain == shown[0][0]], rows, WIDTH_INCHES - sum(widths) - 0.02, widths)
        _legend(page, stages)
        page.finish()
    return page.fig


def _rows(stages: pd.DataFrame) -> list[tuple[str, int, str, bool]]:
    """(pipeline, stage number, label, whether it is a pipeline's heading), from the top."""
    found: list[tuple[str, int, str, bool]] = []
    for (pipeline, number), own in stages.groupby(["pipeline", "number"], sort=False):
        first = own.iloc[0]
        if not any(row[0] == pipeline for row in found):
            found.append((str(pipeline), 0, str(first.pipeline_label), True))
        found.append((str(pipeline), int(number), f"after {first.label}", False))
    return found


def _panel(axes: Axes, table: pd.DataFrame, rows: list[tuple[str, int, str, bool]]) -> None:
    if table.gold.isna().all():
        empty(axes, "nothing measured")
        return
    by_arm = table.drop_duplicates("arm").set_index("arm")
    by_stage = table.set_index(["pipeline", "number"])
    starts = table[table.pipeline == ""].sort_values("gold")
    for place, (_, start) in enumerate(starts.iterrows()):
        style: Any = "-" if start.arm == "sft" else (0, (1, 1.6))
        axes.axvline(start.gold, color=GREY, linewidth=0.7, linestyle=style, zorder=1)
        leftmost = place == 0 and len(starts) > 1
        axes.annotate(
            str(start.label), (start.gold, -0.35), xytext=(-2 if leftmost else 2, 0), textcoords="offset points",
            ha="right" if leftmost else "left", va="center", size=SMALL, color=GREY,
        )  # fmt: skip
    for y, (pipeline, number, _, header) in enumerate(rows):
        if header:
            continue
        line = by_stage.loc[pipeline, number]
        if math.isnan(line.gold):
            continue
        color, marker = _style(line.paid_by)
        if line.before in by_arm.index and not math.isnan(by_arm.gold[line.before]):
            start = by_arm.gold[line.before]
            axes.plot([start, line.gold], [y - 1, y], color=color, linewidth=0.6, alpha=0.6, zorder=2)
        axes.plot([line.gold_low, line.gold_high], [y, y], color=color, linewidth=1.0, zorder=3)
        axes.plot([line.gold], [y], color=color, marker=marker, markersize=4.2, zorder=4)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_yticks([])
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.06)
    axes.spines["left"].set_visible(False)


def _style(paid_by: str) -> tuple[str, str]:
    return GOLD if paid_by == "gold" else PAID.get(paid_by, MODEL)


def _names(axes: Axes, rows: list[tuple[str, int, str, bool]]) -> None:
    for y, (_, _, label, header) in enumerate(rows):
        axes.annotate(
            label, (0, y), xycoords=("axes fraction", "data"), xytext=(-4, 0), textcoords="offset points",
            ha="right", va="center", size=SMALL, color=BLACK if header else "#444444",
            weight="bold" if header else "normal",
        )  # fmt: skip


def _numbers(
    page: Page, table: pd.DataFrame, rows: list[tuple[str, int, str, bool]], left: float, widths: list[float]
) -> None:
    """Columns of numbers at the right, in the rows of the panels, which share their height."""
    bottom, height = page.rows[0]
    by_stage = table.set_index(["pipeline", "number"])
    for place, (title, name) in enumerate(NUMBERS):
        x = (left + sum(widths[: place + 1])) / WIDTH_INCHES
        page.fig.text(x, (bottom + height + 0.1) / page.height, title, ha="right", va="center", size=SMALL)
        for y, (pipeline, number, _, header) in enumerate(rows):
            if header:
                continue
            line = by_stage.loc[pipeline, number]
            at = (bottom + height * (1 - (y + 0.6) / (len(rows) + 0.2))) / page.height
            missing = math.isnan(line[name])
            said = "missing" if missing else count(line[name]).strip() or "0"
            color = WARNING if missing else "#444444"
            page.fig.text(x, at, said, ha="right", va="center", size=SMALL, color=color)


def _legend(page: Page, stages: pd.DataFrame) -> None:
    """What pays, as coloured words above the panels."""
    words = {"": "demonstrations", "samples": "own samples", "preferences": "preferences directly",
             "verifier": "a verifier", "gold": "the truth"}  # fmt: skip
    kinds = list(dict.fromkeys(str(kind) for kind in stages.paid_by))
    said: dict[tuple[str, str], str] = {}
    for kind in kinds:
        said.setdefault(_style(kind), words.get(kind, "a reward model"))
    bottom, height = page.rows[0]
    x, y = 0.1, (bottom + height + 0.3) / page.height
    for (color, _marker), text in said.items():
        page.fig.text(x / WIDTH_INCHES, y, text, color=color, size=SMALL, va="center", weight="bold")
        x += inches(text, SMALL) * BOLD + 0.15
