"""The figure of what reward models learn from more pairs: a line for each size."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from lab.figures.style import GREY, SMALL, WARNING, WIDTH_INCHES, paper

PANELS = (("accuracy", "held-out pairs"), ("easy", "benchmark, easy half"), ("hard", "benchmark, hard half"))
HEIGHT = 2.55


def learning_figure(table: pd.DataFrame, *, level: float = 0.95, note: str | None = None) -> Figure:
    """The figure, from ``lab.tables.learning.learning_table``; save it with ``lab.figures.save``.

    Accuracy on held-out pairs and on each half of the benchmark against training pairs, a line a size, with intervals;
    dashed: the random reward, dotted: the length reward. ValueError if no reward model is in the table.
    """
    models = table[table.control == ""]
    if models.empty:
        raise ValueError("learning_figure: no reward model in the table")
    sizes = list(models.sort_values("parameters").backbone.unique())
    ramp = colormaps["viridis"]
    colors = {size: ramp(0.9 * (1 - i / max(len(sizes) - 1, 1))) for i, size in enumerate(sizes)}
    ticks = sorted(models.pairs.unique())
    with paper():
        fig = Figure(figsize=(WIDTH_INCHES, HEIGHT))
        boxes = fig.subplots(1, len(PANELS))
        fig.subplots_adjust(left=0.075, right=0.868, bottom=0.3, top=0.86, wspace=0.32)
        for axes, letter, (name, title) in zip(boxes, "abc", PANELS, strict=True):
            for place, size in enumerate(sizes):
                own = models[models.backbone == size].sort_values("pairs")
                x = own.pairs * (1 + 0.03 * (place - (len(sizes) - 1) / 2))  # intervals must not hide each other
                axes.errorbar(
                    x, own[name], yerr=_bars(own, name), color=colors[size], marker="o", markersize=3, linewidth=1.1,
                    elinewidth=0.8, label=f"{size}: {_short(own.parameters.iloc[0])}",
                )  # fmt: skip
            for control, dashes in (("random", (0, (3, 2))), ("length", (0, (1, 1.6)))):
                known = table.loc[table.control == control, name].dropna()
                if len(known):
                    axes.axhline(float(known.iloc[0]), color=GREY, linestyle=dashes, linewidth=0.9, label=control)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.set_xlabel("training pairs")
            axes.set_title(title, loc="left", x=0.08)
            axes.text(0.0, 1.045, letter, transform=axes.transAxes, size=9, weight="bold")
        boxes[-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), fontsize=SMALL, frameon=False, handlelength=1.6)
        style: dict[str, Any] = {"size": SMALL, "color": "#444444", "va": "bottom"}
        seeds = f"{models.n_seeds.min()}" if models.n_seeds.nunique() == 1 else f"{models.n_seeds.min()} or more"
        fig.text(
            0.01,
            0.02,
            f"Lines: reward models by parameters (embeddings left out), {seeds} seeds each; bars: {level:.0%} "
            "Student's t intervals over seeds.\nDashed: a random reward; dotted: the longer the better. Fewer pairs "
            "are the first of the same pool.",
            **style,
        )
        if note:
            fig.text(0.5, 0.985, note, ha="center", va="top", color=WARNING, weight="bold")
    return fig


def _short(count: float) -> str:
    """3392 -> "3.4k", as the sweep's figure writes parameters."""
    return f"{count / 1e6:.2g}M" if count >= 999_500 else f"{float(f'{count / 1e3:.2g}'):g}k"


def _bars(own: pd.DataFrame, name: str) -> Any:
    low, high = own[name] - own[f"{name}_low"], own[f"{name}_high"] - own[name]
    return [low.fillna(0.0), high.fillna(0.0)]
