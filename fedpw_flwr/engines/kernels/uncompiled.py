"""The loops of `Kernels` in NumPy and PyTorch, in blocks that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fedpw_flwr.engines.kernels import Bools, Bytes, Float32s

_BLOCK = 1 << 15
"""Entries at a time, 128 KiB: torch shares out longer arrays to threads."""


def add_update(start: Float32s, trained: Float32s, total: Float32s) -> None:
    """See `Kernels`."""
    for block in _blocks(len(start)):
        total[block] += start[block] - trained[block]


def products(start: Float32s, trained: Float32s, total: Float32s) -> tuple[float, float]:
    """See `Kernels`."""
    product = squares = 0.0
    for block in _blocks(len(start)):
        update = start[block] - trained[block]
        product += _dot(update, total[block])
        squares += _dot(update, update)
    return product, squares


def collect_update(
    start: Float32s, trained: Float32s, low: np.float32, high: np.float32, between: Float32s
) -> tuple[int, float, float, int]:
    """See `Kernels`."""
    total = squares = 0.0
    count = collected = 0
    for block in _blocks(len(start)):
        magnitudes = np.abs(start[block] - trained[block])
        found = collect_values(magnitudes, low, high, between[collected:])
        count, total, squares = count + found[0], total + found[1], squares + found[2]
        collected += found[3]
    return count, total, squares, collected


def collect_values(
    magnitudes: Float32s, low: np.float32, high: np.float32, between: Float32s
) -> tuple[int, float, float, int]:
    """See `Kernels`."""
    total = squares = 0.0
    count = collected = 0
    for block in _blocks(len(magnitudes)):
        part = magnitudes[block]
        if low > 0:
            count += int(np.count_nonzero(part < low))
            every = torch.from_numpy(part)
            # What is not below is left by hardshrink, so the difference has no rounding.
            below = every - torch.hardshrink(every, float(np.nextafter(low, np.float32(0))))
            total += float(below.sum())
            squares += float(below.square_().sum())
        # Floats that are not negative are in the order of their bits, and bits below those of `low`
        # wrap around to large numbers: one comparison for both ends.
        lowest = low.view(np.uint32)
        inside = np.flatnonzero(part.view(np.uint32) - lowest <= high.view(np.uint32) - lowest)
        between[collected : collected + len(inside)] = part[inside]
        collected += len(inside)
    return count, total, squares, collected


def sum_of_smallest(parted: Float32s, taken: int) -> tuple[float, float, int, int]:
    """See `Kernels`."""
    chosen, threshold = parted[:taken], parted[taken - 1]
    ties = int(np.count_nonzero(parted[:taken] == threshold))
    further = int(np.count_nonzero(parted[taken:] == threshold))
    # By NumPy: PyTorch shares out long sums to threads, and the last bit would depend on them.
    total = float(chosen.sum(dtype=np.float64))
    return total, float(np.square(chosen, dtype=np.float64).sum()), ties, further


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
    """See `Kernels`."""
    for block in _blocks(len(start)):
        update = torch.from_numpy(start[block] - trained[block])
        if threshold >= 0:
            torch.hardshrink(update, float(threshold), out=update)
        torch.from_numpy(change[block]).add_(update, alpha=float(weight))
        update *= float(inverse_norm)
        torch.from_numpy(total[block]).add_(update)
        torch.from_numpy(squares[block]).addcmul_(update, update)


def choose_above(values: Float32s, threshold: np.float32, room: int, members: Bools) -> None:
    """See `Kernels`."""
    np.greater(values, threshold, out=members)
    members[np.flatnonzero(values == threshold)[:room]] = True


def magnitude_on(change: Float32s, members: Bools, sent: Bools, factor: np.float32) -> float:
    """See `Kernels`."""
    total = 0.0
    for block in _blocks(len(change)):
        magnitudes = np.where(members[block], np.abs(change[block]), np.float32(0))
        np.divide(magnitudes, factor, out=magnitudes, where=sent[block])
        total += float(magnitudes.sum())
    return total


def move(start: Float32s, change: Float32s, members: Bools, factor: np.float32) -> None:
    """See `Kernels`."""
    np.multiply(change, factor, out=change, where=members)
    np.subtract(start, change, out=change)


def unpack(
    bits: Bytes, values: Float32s, scale: np.float32, start: Float32s, out: Float32s
) -> None:
    """See `Kernels`."""
    kept = torch.from_numpy(np.unpackbits(bits, count=len(out)).view(np.bool_))
    update = torch.zeros(len(out)).masked_scatter_(kept, torch.from_numpy(values))
    np.subtract(start, update.mul_(float(scale)).numpy(), out=out)


def _dot(first: Float32s, second: Float32s) -> float:
    """Return ⟨a, b⟩; unlike that of a BLAS, its bits do not depend on where the arrays lie."""
    return float((torch.from_numpy(first) * torch.from_numpy(second)).sum())


def _blocks(entries: int) -> Iterator[slice]:
    return (slice(first, min(first + _BLOCK, entries)) for first in range(0, entries, _BLOCK))
