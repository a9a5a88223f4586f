"""The inner loops of the server step on a CPU, each of which reads its arrays once.

Numba compiles them on their first call and keeps them for later processes. Loops that vector
instructions can do are apart from those that they cannot, and go over blocks that stay in the
first-level cache. Arrays have shape (n,) and are contiguous, entries are finite. Sums are taken in
float32 over 2048 entries and in float64 over these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

_BLOCK = 2048
"""Entries whose sums are taken in float32, 8 KiB."""

if getattr(numba.config, "DISABLE_JIT", 0):
    raise ImportError("NUMBA_DISABLE_JIT is set")

Loop = TypeVar("Loop", bound=Callable[..., Any])

_EXACT = {"contract", "nsz"}
_HOW: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": _EXACT}

_inner: Callable[[Loop], Loop] = numba.njit(**_HOW, forceinline=True)
"""Compiles a loop that only compiled ones call, as a part of them.

As a function of its own it could be one code where it was just compiled and another where that was
kept, and the last bit of a sum would depend on it.
"""

_inner_sum: Callable[[Loop], Loop] = numba.njit(
    **{**_HOW, "fastmath": {*_EXACT, "reassoc"}}, forceinline=True
)
"""Does what `_inner` does; sums may be taken in any order, so that vector instructions can."""


def _compiled(loop: Loop) -> Loop:
    """Compile a loop on its first call, every operation as it is written, and keep the result."""
    try:
        usable = [numba.njit(loop, **_HOW, cache=True)]
    except RuntimeError:
        # There is no folder in which compiled code could be kept.
        return cast(Loop, numba.njit(loop, **_HOW))

    def call(*arguments: Any) -> Any:
        try:
            return usable[0](*arguments)
        except OSError:
            # It could not be kept after all, the disk is full; nothing was computed yet.
            usable[0] = numba.njit(loop, **_HOW)
            return usable[0](*arguments)

    return cast(Loop, call)


@_compiled
def add_update(start: Float32s, trained: Float32s, total: Float32s) -> None:
    """Add Δ_k = w − w_k to `total`."""
    for i in range(start.size):
        total[i] += start[i] - trained[i]


@_compiled
def products(start: Float32s, trained: Float32s, total: Float32s) -> tuple[float, float]:
    """Return ⟨Δ_k, Σ_j Δ_j⟩ and ‖Δ_k‖², `total` being Σ_j Δ_j."""
    product = squares = 0.0
    for begin in range(0, start.size, _BLOCK):
        end = min(begin + _BLOCK, start.size)
        sums = _products(start[begin:end], trained[begin:end], total[begin:end])
        product += float(sums[0])
        squares += float(sums[1])
    return product, squares


@_inner_sum
def _products(start: Float32s, trained: Float32s, total: Float32s) -> tuple[np.float32, np.float32]:
    product = squares = np.float32(0)
    for i in range(start.size):
        update = start[i] - trained[i]
        product += update * total[i]
        squares += update * update
    return product, squares


@_compiled
def collect_update(
    start: Float32s, trained: Float32s, low: np.float32, high: np.float32, between: Float32s
) -> tuple[int, float, float, int]:
    """Sum up the magnitudes of Δ_k below a bracket, and collect those inside.

    Parameters
    ----------
    start, trained : NDArray[float32]
        w and w_k.
    low, high : float32
        The bracket, both ends included, 0 ≤ low ≤ high.
    between : NDArray[float32]
        Where magnitudes are collected, in their order; shape (n + 8,), the 8 being room to write
        to.

    Returns
    -------
    tuple[int, float, float, int]
        Number, sum and sum of squares of those below `low`; how many were collected.
    """
    below = below_square = 0.0
    count = collected = 0
    magnitudes = np.empty(_BLOCK, np.float32)
    flags = np.zeros(_BLOCK, np.uint8)
    for begin in range(0, start.size, _BLOCK):
        end = min(begin + _BLOCK, start.size)
        part = magnitudes[: end - begin]
        sums = _magnitudes_and_sums(start[begin:end], trained[begin:end], low, part)
        count += int(sums[0])
        below += float(sums[1])
        below_square += float(sums[2])
        collected = _collect_flagged(part, low, high, flags, between, collected)
    return count, below, below_square, collected


@_inner_sum
def _magnitudes_and_sums(
    start: Float32s, trained: Float32s, low: np.float32, magnitudes: Float32s
) -> tuple[np.float32, np.float32, np.float32]:
    zero, one = np.float32(0), np.float32(1)
    count = below = below_square = zero
    for i in range(start.size):
        magnitude = abs(start[i] - trained[i])
        magnitudes[i] = magnitude
        low_one = magnitude if magnitude < low else zero
        count += one if magnitude < low else zero
        below += low_one
        below_square += low_one * low_one
    return count, below, below_square


@_inner
def _collect_flagged(
    magnitudes: Float32s,
    low: np.float32,
    high: np.float32,
    flags: Bytes,
    between: Float32s,
    collected: int,
) -> int:
    """Collect from a block: few are between, so that eight at a time are mostly passed over."""
    for i in range(magnitudes.size):
        flags[i] = (magnitudes[i] >= low) & (magnitudes[i] <= high)
    flags[magnitudes.size :] = 0
    eights = flags.view(np.uint64)
    for eight in range(eights.size):
        if eights[eight] != 0:
            for i in range(8 * eight, min(8 * eight + 8, magnitudes.size)):
                between[collected] = magnitudes[i]
                collected += flags[i]
    return collected


@_compiled
def sum_of_smallest(parted: Float32s, taken: int) -> tuple[float, float, int, int]:
    """Sum up the first `taken` ≥ 1 of partitioned magnitudes, the last being their largest.

    Returns their sum, the sum of their squares, how many equal the largest of them, and how many of
    the others do.
    """
    total = squares = 0.0
    ties = further = 0
    threshold = parted[taken - 1]
    for i in range(taken):
        magnitude = np.float64(parted[i])
        total += magnitude
        squares += magnitude * magnitude
        ties += parted[i] == threshold
    for i in range(taken, parted.size):
        further += parted[i] == threshold
    return total, squares, ties, further


@_compiled
def average(
    start: Float32s,
    trained: Float32s,
    weight: np.float32,
    threshold: np.float32,
    inverse_norm: np.float32,
    change: Float32s,
    total: Float32s,
    squares: Float32s,
) -> None:
    """Add λ_k Δ̃_k to `change`, x_k = Δ̃_k / ‖Δ̃_k‖ to `total`, x_k² to `squares`.

    Entries of no larger magnitude than `threshold` are masked; none is where it is negative.
    """
    for i in range(start.size):
        update = start[i] - trained[i]
        update = update if abs(update) > threshold else np.float32(0)
        change[i] += weight * update
        unit = update * inverse_norm
        total[i] += unit
        squares[i] += unit * unit


@_compiled
def magnitude_on(change: Float32s, members: Bools, sent: Bools, factor: np.float32) -> float:
    """Return Σ_{j∈C} |g_j|, divided by `factor` where the clients multiplied by it."""
    multiplied = others = 0.0
    for begin in range(0, change.size, _BLOCK):
        end = min(begin + _BLOCK, change.size)
        sums = _magnitudes_on(change[begin:end], members[begin:end], sent[begin:end])
        multiplied += float(sums[0])
        others += float(sums[1])
    return multiplied / float(factor) + others


@_inner_sum
def _magnitudes_on(change: Float32s, members: Bools, sent: Bools) -> tuple[np.float32, np.float32]:
    multiplied = others = np.float32(0)
    for i in range(change.size):
        entry = abs(change[i]) * np.float32(members[i])
        of_sent = entry * np.float32(sent[i])
        multiplied += of_sent
        others += entry - of_sent
    return multiplied, others


@_compiled
def move(start: Float32s, change: Float32s, members: Bools, factor: np.float32) -> None:
    """Write w − g over g, amplified by `factor` on C."""
    for i in range(start.size):
        amplified = change[i] * factor if members[i] else change[i]
        change[i] = start[i] - amplified


_KEPT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32)
_BEFORE = (np.cumsum(_KEPT, axis=1) - _KEPT).astype(np.uint8)
"""The bits of every byte, highest first, and how many ones precede each of them, shape (256, 8)."""


@_compiled
def unpack(
    bits: Bytes, values: Float32s, scale: np.float32, start: Float32s, out: Float32s
) -> None:
    """Write w − Δ̃_k over `out`: a bit an entry says whether its value comes next or is 0.

    Behind the kept `values` are 8 more, which are finite and not used. `scale` is a power of two.
    """
    first = 0
    for at in range(bits.size):
        # Eight that do not wait for each other, and without a branch that nobody could predict.
        byte = bits[at]
        for bit in range(8):
            i = 8 * at + bit
            if i < out.size:
                value = values[first + _BEFORE[byte, bit]]
                out[i] = start[i] - value * scale * _KEPT[byte, bit]
        first += _BEFORE[byte, 7] + (byte & 1)
