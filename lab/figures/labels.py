"""Names beside what they name: ends of lines pushed apart, and dots labelled where there is room."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from lab.figures.style import GREY, SMALL


def inches(text: str, size: float) -> float:
    """The width of a text."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(width) / 72


def panel_inches(axes: Axes) -> tuple[float, float]:
    """Width and height of a panel."""
    figure, box = axes.get_figure(root=True), axes.get_position()
    assert figure is not None
    wide, tall = figure.get_size_inches()
    return float(box.width * wide), float(box.height * tall)


def spread(wanted: Mapping[str, float], apart: float, low: float, high: float) -> dict[str, float]:
    """Places at least ``apart``, in the order of the wanted ones and as near to them as least squares allows.

    Within ``low`` to ``high`` if they fit there; otherwise evenly over it, closer than ``apart``.
    """
    names = sorted(wanted, key=lambda name: (wanted[name], name))
    if not names:
        return {}
    apart = min(apart, (high - low) / max(len(names) - 1, 1))
    # With y_i = x_i - i * apart the gaps become "not decreasing": isotonic regression by pooling neighbours.
    pools: list[list[float]] = []
    for place, name in enumerate(names):
        pools.append([wanted[name] - place * apart])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [_mean(pool) for pool in pools for _ in pool]
    top = high - (len(names) - 1) * apart
    return {name: min(max(level[i], low), top) + i * apart for i, name in enumerate(names)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class Box(NamedTuple):
    """A rectangle in inches."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """The shared area."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        tall = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(wide, 0.0) * max(tall, 0.0)

    def holds(self, point: tuple[float, float]) -> bool:
        return self.left < point[0] < self.right and self.bottom < point[1] < self.top


PASSES = 6
"""How often every label may choose again, now that the others have chosen."""


def label_points(
    axes: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str], colors: Sequence[str]
) -> None:
    """A label at each point, moved off the other labels, dots and lines, with a thin line where it had to move far.

    In turns, the most crowded point first, each label takes the best place around its point, as the others now stand.
    The axes' limits are final.
    """
    limits = axes.get_xlim(), axes.get_ylim()
    width, height = panel_inches(axes)

    def to_inches(point: tuple[float, float]) -> tuple[float, float]:
        (x0, x1), (y0, y1) = limits
        return (point[0] - x0) / (x1 - x0) * width, (point[1] - y0) / (y1 - y0) * height

    dots = [to_inches(point) for point in points]
    around = [Box(x - 0.035, y - 0.035, x + 0.035, y + 0.035) for x, y in dots]
    near = [sum(math.dist(dot, other) < 0.5 for other in dots) for dot in dots]
    order = sorted(range(len(dots)), key=lambda i: (-near[i], i))
    page = Box(0, 0, width, height)
    choices = [_places(dot, inches(label, SMALL) + 0.03, page) for dot, label in zip(dots, labels, strict=True)]
    chosen: dict[int, _Place] = {}
    for index in order * PASSES:
        others = [place for i, place in chosen.items() if i != index]
        chosen[index] = min(choices[index], key=lambda place: _cost(place, others, around))
    for index, place in chosen.items():
        color = colors[index]
        if place.leader:
            ends = [place.leader[0], place.leader[-1]]
            line: dict[str, Any] = {"color": GREY, "linewidth": 0.35, "transform": axes.transAxes, "zorder": 2}
            axes.plot([x / width for x, _ in ends], [y / height for _, y in ends], **line)
        box = place.box
        style: dict[str, Any] = {"ha": "center", "va": "center", "size": SMALL, "transform": axes.transAxes}
        middle = ((box.left + box.right) / 2 / width, (box.bottom + box.top) / 2 / height)
        axes.text(*middle, labels[index], color=color, zorder=6, **style)
    axes.set_xlim(*limits[0])
    axes.set_ylim(*limits[1])


class _Place(NamedTuple):
    """Where a label may go: its box, points along the line to its dot (none where it is near), what that costs."""

    box: Box
    leader: tuple[tuple[float, float], ...]
    cost: float


def _places(dot: tuple[float, float], wide: float, page: Box) -> list[_Place]:
    """Boxes around a dot; nearness and the right side are worth a little, staying on the page is worth a lot."""
    places, tall = [], 0.105
    for radius, turn in itertools.product((0.05, 0.1, 0.16, 0.23, 0.31, 0.4, 0.5, 0.62, 0.76), range(24)):
        angle = math.tau * ((turn + 1) // 2) / 24 * (1 if turn % 2 else -1)
        x = dot[0] + math.cos(angle) * radius + (math.cos(angle) - 1) / 2 * wide
        y = dot[1] + math.sin(angle) * radius + (math.sin(angle) - 1) / 2 * tall
        box = Box(x, y, x + wide, y + tall)
        outside = wide * tall - box.overlap(page)
        cost = 0.004 * radius + 0.0001 * turn / 24 + 5 * outside
        end = min(max(dot[0], box.left), box.right), min(max(dot[1], box.bottom), box.top)
        steps = [k / 8 for k in range(9)] if radius > 0.06 else []
        leader = tuple((dot[0] + t * (end[0] - dot[0]), dot[1] + t * (end[1] - dot[1])) for t in steps)
        places.append(_Place(box, leader, cost))
    return places


def _cost(place: _Place, others: Sequence[_Place], dots: Sequence[Box]) -> float:
    """Square inches of labels and dots that it covers, lines that cross it, labels and dots that its line crosses."""
    covered = sum(place.box.overlap(other.box) for other in others) + sum(place.box.overlap(dot) for dot in dots)
    crossed = sum(place.box.holds(point) for other in others for point in other.leader)
    crossed += sum(other.box.holds(point) for other in others for point in place.leader)
    crossed += sum(dot.holds(point) for dot in dots for point in place.leader[1:])
    return place.cost + covered + 0.004 * crossed
