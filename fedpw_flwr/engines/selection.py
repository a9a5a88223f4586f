"""The smallest magnitudes of an array without sorting it, and without partitioning a long one.

A sample of 1 in 61 says between which two values the k-th smallest must lie, up to four standard
deviations of its rank in the sample. One pass, in blocks that stay in the cache, sums up what is
smaller and collects what lies between; among these the search goes on in the same way, until they
are few enough to be partitioned. The result is exact: where the sample misled, all are searched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedpw_flwr.engines.kernels import Float32s, Kernels

__all__ = ["EVERYTHING", "SAMPLED", "Smallest", "bracket", "select", "smallest"]

SAMPLED = 61
"""One entry in so many is sampled: a prime, not to meet the same channels of every filter."""

_PASS = 1 << 18
"""Entries at a time."""

_DEVIATIONS = 4.0
_SHORT = 1 << 13
"""Shorter arrays are partitioned as a whole."""

EVERYTHING = (np.float32(0), np.float32(np.inf))
"""The bracket of which nothing is outside."""


@dataclass(frozen=True)
class Smallest:
    """The `count` smallest of some magnitudes.

    Attributes
    ----------
    threshold : float
        The largest of them.
    total, squares : float
        Their sum and the sum of their squares.
    ties, further_ties : int
        How many of them have the magnitude `threshold`, and how many more entries have it.
    """

    threshold: float
    total: float
    squares: float
    ties: int
    further_ties: int


def bracket(sample: Float32s, count: int, entries: int) -> tuple[np.float32, np.float32]:
    """Return two magnitudes between which the `count`-th smallest of `entries` should lie.

    Parameters
    ----------
    sample : NDArray[float32]
        Magnitudes of one entry in `SAMPLED`; reordered.
    count, entries : int
        1 ≤ count ≤ entries.
    """
    if entries < _SHORT:
        return EVERYTHING
    share = count / entries
    reach = _DEVIATIONS * math.sqrt(len(sample) * share * (1.0 - share)) + 1.0
    first = math.floor(len(sample) * share - reach)
    last = math.ceil(len(sample) * share + reach)
    places = [place for place in (first, last) if 0 <= place < len(sample)]
    if places:
        sample.partition(places)
    return (
        sample[first] if first >= 0 else EVERYTHING[0],
        sample[last] if last < len(sample) else EVERYTHING[1],
    )


def select(
    collected: Sequence[Float32s],
    taken: int,
    total: float,
    squares: float,
    entries: int,
    loops: Kernels,
) -> Smallest | None:
    """Add the smallest of the magnitudes inside a bracket to those below it.

    Parameters
    ----------
    collected : Sequence[NDArray[float32]]
        The magnitudes inside the bracket.
    taken : int
        How many of them are wanted.
    total, squares : float
        Sums over those below it.
    entries : int
        Of how many entries they are.
    loops : Kernels
        What sums up.

    Returns
    -------
    Smallest | None
        None where the bracket does not hold the threshold.
    """
    between = np.concatenate(collected)
    if not 0 < taken <= len(between):
        return None
    if _SHORT <= len(between) <= entries // 2:
        found = smallest(between, taken, loops)
        return replace(found, total=total + found.total, squares=squares + found.squares)
    between.partition(taken - 1)
    of_taken, squares_of_taken, ties, further_ties = loops.sum_of_smallest(between, taken)
    return Smallest(
        float(between[taken - 1]),
        total + of_taken,
        squares + squares_of_taken,
        int(ties),
        int(further_ties),
    )


def smallest(magnitudes: Float32s, count: int, loops: Kernels) -> Smallest:
    """Find the `count` smallest of some magnitudes, 1 ≤ count ≤ n; nothing is reordered.

    Parameters
    ----------
    magnitudes : NDArray[float32]
        Shape (n,), none of them negative. Where NaN is among them, the result may be NaN.
    count : int
        How many.
    loops : Kernels
        What reads them.
    """
    entries = len(magnitudes)
    for low, high in (bracket(magnitudes[::SAMPLED].copy(), count, entries), EVERYTHING):
        collected: list[Float32s] = []
        sums = np.zeros(3)
        for begin in range(0, entries, _PASS):
            part = magnitudes[begin : begin + _PASS]
            between = np.empty(len(part) + 8, dtype=np.float32)
            *found_below, number = loops.collect_values(part, low, high, between)
            sums += found_below
            collected.append(between[:number].copy())
        below, total, squares = sums.tolist()
        found = select(collected, count - int(below), total, squares, entries, loops)
        if found is not None:
            return found
    # Only NaN is not between 0 and infinity.
    return Smallest(math.nan, math.nan, math.nan, 0, 0)
