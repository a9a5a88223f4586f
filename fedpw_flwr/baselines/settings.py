"""Hyper-parameters checked where they are set: a wrong value fails before any training."""

from __future__ import annotations

import math
from typing import Literal, get_args

__all__ = ["Rescale", "checked_rescale", "number_in"]

Rescale = Literal["none", "mean"]
"""How long a step is: as in the paper of the method, or as long as the clients' own on average."""


def checked_rescale(rescale: Rescale) -> Rescale:
    """Check how long steps are to be, and return it.

    Raises
    ------
    ValueError
        If it is not one of the choices.
    """
    if rescale not in get_args(Rescale):
        raise ValueError(f"rescale={rescale!r}: choose 'none' or 'mean'")
    return rescale


def number_in(
    name: str,
    value: object,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: bool = False,
) -> float:
    """Return a setting that is a number from `least` to `most`; `above`: not `least` itself.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is not finite, or outside.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    inside = least < number if above else least <= number
    if not (math.isfinite(number) and inside and number <= most):
        opening = "(" if above or least == -math.inf else "["
        closing = ")" if most == math.inf else "]"
        raise ValueError(f"{name}={value} is outside {opening}{least:g}, {most:g}{closing}")
    return number
