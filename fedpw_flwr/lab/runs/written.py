"""Figures as text: how tables, plots and sentences write a number and a percentage."""

from __future__ import annotations

import math

UNKNOWN = "–"


def number(value: float, digits: int = 2, *, sign: bool = False, std: float = math.nan) -> str:
    """Write a figure with its standard deviation, where there is one; – where it is unknown."""
    if not math.isfinite(value):
        return UNKNOWN
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return f"{text} ± {std:.{digits}f}" if math.isfinite(std) else text


def percent(value: float, digits: int = 1) -> str:
    """Write a percentage in a sentence."""
    return f"{number(value, digits)} %" if math.isfinite(value) else "unknown"
