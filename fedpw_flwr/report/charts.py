"""Line charts as inline SVG: where lines, ticks and labels are; the template draws them.

A line's label stands at its end, in place of a legend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

WIDTH, HEIGHT = 400, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 252.0, 12.0, 186.0
_PITCH = 15.0
_MOST_ROUNDS = 150


@dataclass(frozen=True)
class Line:
    """Figures by round, NaN where there is none; `look` are CSS classes of the line."""

    values: FloatArray
    look: str
    label: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart in units of its view box: paths with their looks, and texts with their heights."""

    title: str
    note: str
    paths: Sequence[tuple[str, str]]
    labels: Sequence[tuple[float, str, str]]
    ticks: Sequence[tuple[float, str]]
    rounds: Sequence[tuple[float, int]]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    right: float = _RIGHT


def line_chart(
    title: str,
    note: str,
    rounds: FloatArray,
    lines: Sequence[Line],
    unit: str = "",
    level: float = math.nan,
) -> Chart:
    """Place lines over at least one round, the later on top of the earlier.

    `level` is a value to compare with. Of many rounds only every so many-th is drawn.
    """
    step = math.ceil(len(rounds) / _MOST_ROUNDS)
    drawn = np.arange(len(rounds) - 1, -1, -step)[::-1]
    everything = np.concatenate([*(line.values for line in lines), [level]])
    finite = everything[np.isfinite(everything)]
    ticks = _ticks(float(finite.min()), float(finite.max())) if len(finite) else [0.0, 1.0]
    across = _LEFT + (_RIGHT - _LEFT) * (rounds - rounds[0]) / max(rounds[-1] - rounds[0], 1)

    def height(value: FloatArray | float) -> FloatArray:
        return np.asarray(_BOTTOM - (_BOTTOM - _TOP) * (value - ticks[0]) / (ticks[-1] - ticks[0]))

    paths = [(_path(across[drawn], height(line.values[drawn])), line.look) for line in lines]
    if math.isfinite(level):
        paths.insert(0, (_path(across[[0, -1]], height(np.full(2, level))), "level"))
    ends = ((line.label, line.values[np.isfinite(line.values)][-1:]) for line in lines)
    last = {label: float(end[0]) for label, end in ends if label and len(end)}
    looks = {line.label: line.look for line in lines}
    named = sorted(last, key=last.__getitem__, reverse=True)
    heights = _apart([float(height(last[name])) for name in named])
    return Chart(
        title,
        f"{note} One round in {step} is drawn." if step > 1 else note,
        paths,
        [
            (round(place, 1), f"{shortened(name)} {last[name]:.3g} {unit}", looks[name])
            for place, name in zip(heights, named, strict=True)
        ],
        [(round(float(height(tick)), 1), f"{tick:g}") for tick in ticks],
        [(float(across[index]), int(rounds[index])) for index in sorted({0, len(rounds) - 1})],
    )


def shortened(name: str, longest: int = 14) -> str:
    """Shorten a name to `longest` characters in its middle: names often differ in their ends."""
    if len(name) <= longest:
        return name
    end = longest // 2
    return f"{name[: longest - 1 - end]}…{name[-end:]}"


def _path(across: FloatArray, heights: FloatArray) -> str:
    """Return a path through the points that there are; a single one is a dot of round ends."""
    there = np.isfinite(heights)
    points = np.column_stack((across[there], heights[there])).ravel().tolist()
    points *= 2 if len(points) == 2 else 1
    # One formatting of all points: there may be tens of thousands.
    return "M" + "L".join(["%.1f %.1f"] * (len(points) // 2)) % tuple(points) if points else ""


def _apart(heights: list[float]) -> list[float]:
    """Move labels apart where they would overlap, the lowest first back into the chart."""
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + _PITCH)
    bottom = _BOTTOM + _PITCH / 2
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], bottom)
        bottom = heights[index] - _PITCH
    return heights


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers, the first and last of which enclose the values."""
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-6):
        low, high = low - 0.1 * (abs(low) or 1), high + 0.1 * (abs(high) or 1)
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    pitch = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= (high - low) / 4)
    places = range(math.floor(low / pitch + 1e-9), math.ceil(high / pitch - 1e-9) + 1)
    return [pitch * place for place in places]
