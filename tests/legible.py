"""What every figure owes its reader."""

from __future__ import annotations

import itertools

from matplotlib.axis import Tick
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from lab.figures.style import SMALL


def assert_legible(figure: Figure) -> None:
    """No text is too small, leaves the page or lies on another; labels of ticks aside, which matplotlib places."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    ticks = {label for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}
    boxes = []
    for text in figure.findobj(Text):
        if not text.get_visible() or not text.get_text().strip() or text in ticks:
            continue
        assert text.get_fontsize() >= SMALL, text.get_text()
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text.get_text()
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text.get_text()
        boxes.append((text.get_text(), box.padded(-0.5)))
    for (one, box), (two, other) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other), (one, two)
