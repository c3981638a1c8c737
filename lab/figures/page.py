"""A page in inches: rows of panels, headings, a note and a caption. It grows with its rows; text never shrinks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.figures.labels import inches
from lab.figures.style import SMALL, WARNING, WIDTH_INCHES

EDGE, ROW, BETWEEN = 0.06, 0.158, 0.28
LINE, NOTE = 0.115, 0.26


@dataclass(frozen=True)
class Page:
    """The figure and where its panels lie: (bottom, height) of each row of panels, from the top, in inches."""

    fig: Figure
    rows: tuple[tuple[float, float], ...]
    caption: str
    note: str | None

    @staticmethod
    def of(
        lines: int,
        caption: str,
        note: str | None,
        *,
        per_row: float = 0.0,
        panels: Sequence[float] = (),
        above: float,
        below: float,
        least: float = 0.0,
    ) -> Page:
        """One row of panels with ``lines`` lines of text each, or rows of panels of the given heights; ``above`` and
        ``below`` each row: room for its headings and its axes."""
        text = wrap(caption, WIDTH_INCHES - 2 * EDGE)
        heights = list(panels) or [max(lines * per_row, least)]
        bottom = 0.1 + LINE * (text.count("\n") + 1)
        places = []
        for height in reversed(heights):
            places.append((bottom + below, height))
            bottom += below + height + above
        whole = bottom + (NOTE if note else 0.0)
        return Page(Figure(figsize=(WIDTH_INCHES, whole)), tuple(reversed(places)), text, note)

    @property
    def height(self) -> float:
        return float(self.fig.get_size_inches()[1])

    def axes(self, left: float, width: float, panel: int = 0) -> Axes:
        """A panel in one of the rows, ``left`` and ``width`` in inches."""
        bottom, height = self.rows[panel]
        box = (left / WIDTH_INCHES, bottom / self.height, width / WIDTH_INCHES, height / self.height)
        return self.fig.add_axes(box)

    def heading(self, axes: Axes, letter: str, text: str, left: float | None = None) -> None:
        """A bold letter and a title above a panel."""
        box = axes.get_position()
        x = box.x0 if left is None else left / WIDTH_INCHES
        y = box.y1 + 0.1 / self.height
        self.fig.text(x, y, letter, size=9, weight="bold", va="center")
        self.fig.text(x + 0.14 / WIDTH_INCHES, y, text, va="center")

    def finish(self) -> None:
        """The note at the top and the caption at the bottom."""
        if self.note:
            frame = {"facecolor": "#FFF3EC", "edgecolor": WARNING, "linewidth": 0.6, "boxstyle": "square,pad=0.25"}
            style: dict[str, Any] = {"ha": "center", "va": "center", "color": WARNING, "weight": "bold", "bbox": frame}
            self.fig.text(0.5, 1 - 0.14 / self.height, self.note, **style)
        style = {"size": SMALL, "color": "#444444", "va": "bottom", "linespacing": 1.25}
        self.fig.text(EDGE / WIDTH_INCHES, 0.05 / self.height, self.caption, **style)


def empty(axes: Axes, text: str) -> None:
    """A panel that has nothing to show says so."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=WARNING, style="italic")


def wrap(text: str, width: float) -> str:
    """The text in lines of at most ``width`` inches."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if inches(longer, SMALL) < 0.96 * width:  # hinting makes text a little wider
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
