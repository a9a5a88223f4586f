"""The texts of a plot, and whether a reader can read them all."""

from __future__ import annotations

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in pixels."""


def shown_texts(figure: Figure) -> list[tuple[str, Box]]:
    """Every text that is drawn, with its box."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    texts = [*figure.texts]
    for axes in (part for whole in figure.axes for part in (whole, *whole.child_axes)):
        texts += [axes.xaxis.label, axes.yaxis.label]
        texts += [child for child in axes.get_children() if isinstance(child, Text)]
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [label for tick in ticks for label in (tick.label1, tick.label2)]
    return [
        (text.get_text(), text.get_window_extent().extents)
        for text in dict.fromkeys(texts)
        if text.get_text() and text.get_visible()
    ]


def assert_legible(figure: Figure, name: str) -> None:
    """No text leaves the plot, and none lies on another."""
    texts = shown_texts(figure)
    width, height = figure.get_size_inches() * figure.dpi
    for text, (left, bottom, right, top) in texts:
        inside = left >= 0 and bottom >= 0 and right <= width + 1 and top <= height
        assert inside, f"{text!r} leaves {name}"
    for (text, box), (other, other_box) in itertools.combinations(texts, 2):
        assert not overlap(box, other_box), f"{text!r} and {other!r} overlap in {name}"


def overlap(first: Box, second: Box) -> bool:
    # Boxes include the line's ascent, so a pixel in common is no ink in common.
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return width > 1 and height > 1
