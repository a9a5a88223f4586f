"""The smallest magnitudes of an array without sorting it, and without partitioning a long one.

A sample of 1 in 61 says between which two values the k-th smallest must lie, up to four standard
deviations of its rank in the sample. One pass, in parts that stay in the cache, sums up what is
smaller and collects what lies between; among these the search goes on in the same way, until they
are few enough to be partitioned. The result is exact: where the sample misled, all are searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedpw_flwr.engines import compiled
from fedpw_flwr.engines.compiled import Float32s

SAMPLED = 61
"""One entry in so many is sampled: a prime, not to meet the same channels of every filter."""

PART = 1 << 18
"""Entries of one client's tensor that are looked at together, 1 MiB."""

_DEVIATIONS = 4.0
_SHORT = 1 << 13
"""Shorter arrays are partitioned as a whole."""

_EVERYTHING = (np.float32(0), np.float32(np.inf))
"""The bracket of which nothing is outside."""

_TINY = np.nextafter(np.float32(0), np.float32(1))

Collect = Callable[[slice, np.float32, np.float32, Float32s], tuple[int, float, float, int]]
"""Collects the magnitudes of a part that lie in a bracket, see `compiled.collect_update`."""


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


def parts(entries: int, together: int = PART) -> Iterator[slice]:
    """Divide so many entries into slices of up to `together`."""
    for begin in range(0, entries, together):
        yield slice(begin, min(begin + together, entries))


def smallest_of(magnitudes: Float32s, count: int) -> Smallest:
    """Find the `count` ≥ 1 smallest of magnitudes that lie in memory; nothing is reordered."""
    zeros = np.zeros(min(PART, len(magnitudes)), dtype=np.float32)

    def collect(part: slice, *bracket: Any) -> tuple[int, float, float, int]:
        return compiled.collect_update(magnitudes[part], zeros[: part.stop - part.start], *bracket)

    return smallest(collect, magnitudes[::SAMPLED].copy(), count, len(magnitudes))


def smallest(collect: Collect, sample: Float32s, count: int, entries: int) -> Smallest:
    """Find the `count` smallest of magnitudes that are read in parts, 1 ≤ count ≤ entries.

    `sample` is one entry in `SAMPLED` and is reordered. No magnitude may be NaN.
    """
    between = np.empty(min(PART, entries) + 8, dtype=np.float32)
    for low, high in (bracket(sample, count, entries), _EVERYTHING):
        if high == 0:
            # What is 0 need not be collected, counting it will do.
            low = high = _TINY
        sums, collected = np.zeros(3), []
        for part in parts(entries):
            *below, number = collect(part, low, high, between)
            sums += below
            collected.append(between[:number].copy())
        below_low, total, squares = sums.tolist()
        if low == high == _TINY and below_low >= count:
            return Smallest(0.0, 0.0, 0.0, count, int(below_low) - count)
        found = select(collected, count - int(below_low), total, squares, entries)
        if found is not None:
            return found
    raise ValueError("there is no order among magnitudes of which one is NaN")


def bracket(sample: Float32s, count: int, entries: int) -> tuple[np.float32, np.float32]:
    """Return two magnitudes between which the `count`-th smallest of `entries` should lie."""
    if entries < _SHORT:
        return _EVERYTHING
    share = count / entries
    reach = _DEVIATIONS * math.sqrt(len(sample) * share * (1.0 - share)) + 1.0
    first = math.floor(len(sample) * share - reach)
    last = math.ceil(len(sample) * share + reach)
    ranks = [rank for rank in (first, last) if 0 <= rank < len(sample)]
    if ranks:
        sample.partition(ranks)
    return (
        sample[first] if first >= 0 else _EVERYTHING[0],
        sample[last] if last < len(sample) else _EVERYTHING[1],
    )


def select(
    collected: Sequence[Float32s], taken: int, total: float, squares: float, entries: int
) -> Smallest | None:
    """Add the `taken` smallest magnitudes inside a bracket to the sums over those below it.

    `collected` are those inside, of `entries` in all. None where the bracket does not hold the
    threshold.
    """
    between = np.concatenate(collected)
    if not 0 < taken <= len(between):
        return None
    if _SHORT <= len(between) <= entries // 2:
        found = smallest_of(between, taken)
        return replace(found, total=total + found.total, squares=squares + found.squares)
    between.partition(taken - 1)
    of_taken, squares_of_taken, *ties = compiled.sum_of_smallest(between, taken)
    threshold = float(between[taken - 1])
    return Smallest(threshold, total + of_taken, squares + squares_of_taken, *map(int, ties))
