"""The smallest magnitudes of an array without sorting it, and without partitioning a long one.

A sample of 1 in 64 says between which two values the k-th smallest must lie, up to four standard
deviations of its rank in the sample. One pass, in blocks that stay in the cache, sums up what is
smaller and collects what lies between; the selection itself runs among the few collected. The
result is exact: where the sample misled, the array is partitioned as a whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

__all__ = [
    "BLOCK",
    "EVERYTHING",
    "SAMPLED",
    "Float32s",
    "Scratch",
    "Smallest",
    "Tally",
    "bracket",
    "smallest",
]

Float32s = npt.NDArray[np.float32]

SAMPLED = 64
"""One entry in so many is sampled."""

BLOCK = 1 << 16
"""Entries that are looked at together: 256 KiB."""

_PASS = 1 << 15
"""Entries at a time where only one array is looked at: torch shares out longer ones to threads."""

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


class Scratch:
    """Room for what is computed of a block and not kept.

    Parameters
    ----------
    entries : int
        Of the largest block.
    """

    def __init__(self, entries: int) -> None:
        self.magnitudes = np.empty(entries, dtype=np.float32)
        self.values = np.empty(entries, dtype=np.float32)
        self.flags = np.empty(entries, dtype=np.bool_)


class Tally:
    """What is known about the smallest magnitudes after a look at some of the entries.

    Parameters
    ----------
    limits : tuple[float32, float32]
        Where the threshold should lie, both ends included.
    """

    def __init__(self, limits: tuple[np.float32, np.float32]) -> None:
        self._low, self._high = limits
        self._below = 0
        self._total = self._squares = 0.0
        self._between: list[tuple[int, Float32s]] = []

    def add(self, magnitudes: Float32s, begin: int, scratch: Scratch) -> None:
        """Count the magnitudes of a block that begins at the entry `begin`; none of them is NaN."""
        low, entries = self._low, len(magnitudes)
        flags, values = scratch.flags[:entries], scratch.values[:entries]
        if low > 0:
            self._below += int(np.count_nonzero(np.less(magnitudes, low, out=flags)))
            every, below = torch.from_numpy(magnitudes), torch.from_numpy(values)
            # What is not below is left by hardshrink, so the difference has no rounding.
            torch.hardshrink(every, float(np.nextafter(low, np.float32(0))), out=below)
            torch.sub(every, below, out=below)
            self._total += float(below.sum())
            self._squares += float(torch.dot(below, below))
        # Floats that are not negative are in the order of their bits, and bits below those of `low`
        # wrap around to large numbers: one comparison for both ends.
        lowest, bits = low.view(np.uint32), values.view(np.uint32)
        np.subtract(magnitudes.view(np.uint32), lowest, out=bits)
        inside = np.less_equal(bits, self._high.view(np.uint32) - lowest, out=flags)
        self._between.append((begin, magnitudes[np.flatnonzero(inside)]))

    def smallest(self, count: int) -> Smallest | None:
        """Sum up the `count` smallest of all entries seen; None where the limits were wrong."""
        between = np.concatenate([magnitudes for _, magnitudes in self._between])
        taken = count - self._below
        if not 0 < taken <= len(between):
            return None
        between.partition(taken - 1)
        chosen, threshold = torch.from_numpy(between[:taken]), between[taken - 1]
        return Smallest(
            threshold=float(threshold),
            total=self._total + float(chosen.sum(dtype=torch.float64)),
            squares=self._squares + float(chosen.double().square().sum()),
            ties=int(np.count_nonzero(between[:taken] == threshold)),
            further_ties=int(np.count_nonzero(between[taken:] == threshold)),
        )

    def block_of_tie(self, threshold: float, number: int) -> tuple[int, int]:
        """Find the entry that is the `number`-th, from 0, of the magnitude `threshold`.

        Returns
        -------
        tuple[int, int]
            Where its block begins, and how many of that magnitude precede it in the block.
        """
        for begin, magnitudes in self._between:
            ties = int(np.count_nonzero(magnitudes == threshold))
            if number < ties:
                return begin, number
            number -= ties
        raise IndexError(f"there are not so many entries of magnitude {threshold}")


def smallest(magnitudes: Float32s, count: int) -> Smallest:
    """Find the `count` smallest of some magnitudes, 1 ≤ count ≤ n; nothing is reordered.

    Parameters
    ----------
    magnitudes : NDArray[float32]
        Shape (n,), none of them negative. Where NaN is among them, the result may be NaN.
    count : int
        How many.
    """
    sampled = magnitudes[::SAMPLED].copy()
    scratch = Scratch(min(_PASS, len(magnitudes)))
    for limits in (bracket(sampled, count, len(magnitudes)), EVERYTHING):
        tally = Tally(limits)
        for begin in range(0, len(magnitudes), _PASS):
            tally.add(magnitudes[begin : begin + _PASS], begin, scratch)
        found = tally.smallest(count)
        if found is not None:
            return found
    # Only NaN is not between 0 and infinity.
    return Smallest(math.nan, math.nan, math.nan, 0, 0)
