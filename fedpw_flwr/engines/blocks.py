"""Clients' tensors, of which a block of entries is read at a time.

What lies in memory is read where it is. Of what has to be made first, packed or to be masked, only
a block is ever made, which is used while it is in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpw_flwr.algorithm.adjustment import entry_count
from fedpw_flwr.algorithm.client_step import AdjustedTensors
from fedpw_flwr.engines.kernels import Bools, Float32s, Kernels
from fedpw_flwr.engines.selection import SAMPLED, Smallest, smallest

__all__ = [
    "PART",
    "BlockReader",
    "BlockSource",
    "DenseBlocks",
    "Mask",
    "MaskedBlocks",
    "block_reader",
    "is_plain",
    "mask_of",
    "parts",
]

PART = 1 << 18
"""Entries of one client's tensor that are looked at together, 1 MiB."""


class BlockReader(Protocol):
    """One client's w_k of one tensor, of which a block can be had without making the whole."""

    def read(self, begin: int, end: int, room: Float32s) -> Float32s:
        """Return w_k[begin:end]: a view, or `room`, written to; `begin` is a multiple of 1024."""
        ...


@runtime_checkable
class BlockSource(Protocol):
    """A client's tensors that can be read in blocks."""

    def block_reader(self, name: str, start: Float32s, loops: Kernels) -> BlockReader | None:
        """Return the reader of the tensor `name`, w being `start`, flat, and `loops` its tools.

        None where only the whole tensor can be had.
        """
        ...


class DenseBlocks:
    """w_k of a tensor that lies in memory.

    Parameters
    ----------
    trained : NDArray
        w_k, floating, of any shape; kept, not copied. What is not float32 is cast as it is read.
    """

    def __init__(self, trained: npt.NDArray[np.floating[Any]]) -> None:
        # In another order by index: slow to read, but nothing of the size of the tensor is held.
        in_order = trained.flags.c_contiguous
        self._flat = trained.reshape(-1) if in_order else trained.flat
        self._as_it_is = in_order and trained.flags.aligned and trained.dtype == np.float32

    def read(self, begin: int, end: int, room: Float32s) -> Float32s:
        """Return w_k[begin:end]."""
        block = self._flat[begin:end]
        if self._as_it_is:
            return block
        room[:] = block
        return room

    def sample(self) -> Float32s:
        """Return one entry in `SAMPLED`."""
        return np.asarray(self._flat[::SAMPLED], dtype=np.float32)


@dataclass(frozen=True)
class Mask:
    """Which entries of an update are masked.

    Attributes
    ----------
    threshold : float
        Entries of no larger magnitude are; negative where none is.
    first_kept_tie : int
        From this entry on, those of just this magnitude are kept.
    """

    threshold: float
    first_kept_tie: int

    def pieces(self, begin: int, end: int) -> Iterator[tuple[slice, np.float32]]:
        """Divide the entries [begin:end] where the threshold changes.

        Yields
        ------
        slice, float32
            Entries, counted from `begin`, and the largest magnitude that is masked of them.
        """
        split = min(max(self.first_kept_tie - begin, 0), end - begin)
        threshold = np.float32(self.threshold)
        if split > 0 or self.threshold < 0:
            yield slice(0, end - begin if self.threshold < 0 else split), threshold
        if split < end - begin and self.threshold >= 0:
            yield slice(split, end - begin), np.nextafter(threshold, np.float32(0))

    def apply_(self, updates: Tensor, begin: int) -> None:
        """Write 0 to what is masked of the entries that begin with `begin`, shape (n,)."""
        if self.threshold < 0:
            return
        for piece, largest in self.pieces(begin, begin + len(updates)):
            part = updates[piece]
            torch.hardshrink(part, float(largest), out=part)


def mask_of(found: Smallest, magnitudes: Float32s) -> Mask:
    """Return the mask of the smallest of all magnitudes of an update, ties by lower index."""
    if not found.further_ties:
        return Mask(found.threshold, len(magnitudes))
    ties = np.flatnonzero(magnitudes == found.threshold)
    return Mask(found.threshold, int(ties[found.ties]))


class MaskedBlocks:
    """w − Δ̃_k of an update of which the entries of smallest magnitude are masked.

    Parameters
    ----------
    reader : BlockReader
        Reads w_k.
    start : NDArray[float32]
        w, flat.
    count : int
        How many entries are masked, those of lower index first where magnitudes are equal.
    members : NDArray[bool] | None
        Where what is kept is multiplied by `factor`.
    factor : float
        f.
    loops : Kernels
        What finds the smallest magnitudes.
    keep_sign : bool (default: False)
        Whether no entry may become negative: neither w nor w_k has such a one.
    """

    def __init__(
        self,
        reader: BlockReader,
        start: Float32s,
        count: int,
        members: Bools | None,
        factor: float,
        loops: Kernels,
        *,
        keep_sign: bool = False,
    ) -> None:
        self._reader, self._start = reader, start
        self._keep_sign = keep_sign
        self._members, self._factor = members, np.float32(factor)
        self._mask = Mask(-1.0, len(start))
        self.discarded = 0.0
        if count:
            magnitudes = np.empty(len(start), dtype=np.float32)
            np.subtract(start, reader.read(0, len(start), magnitudes), out=magnitudes)
            np.abs(magnitudes, out=magnitudes)
            found = smallest(magnitudes, count, loops)
            # In the precision in which clients report it.
            self.discarded = float(np.float32(found.total / count))
            self._mask = mask_of(found, magnitudes)

    def read(self, begin: int, end: int, room: Float32s) -> Float32s:
        """Write w − Δ̃_k[begin:end] to `room`."""
        start = self._start[begin:end]
        np.subtract(start, self._reader.read(begin, end, room), out=room)
        self._mask.apply_(torch.from_numpy(room), begin)
        if self._members is not None:
            rescaled = self._members[begin:end]
            if self._keep_sign:
                rescaled = rescaled & (room * self._factor <= start)
            np.multiply(room, self._factor, out=room, where=rescaled)
        return np.subtract(start, room, out=room)


def block_reader(
    tensors: Mapping[str, Tensor], name: str, start: Float32s, loops: Kernels
) -> BlockReader | None:
    """Return the reader of one client's tensor; None where only the whole can be had.

    Parameters
    ----------
    tensors : Mapping[str, Tensor]
        w_k by name: a `BlockSource`, or a dict. Of another mapping nothing is known about what
        making its tensors costs, so none of them is held.
    name : str
        Which tensor.
    start : NDArray[float32]
        w, flat.
    loops : Kernels
        What the reader computes with.
    """
    if isinstance(tensors, AdjustedTensors):
        return _adjusted_reader(tensors, name, start, loops)
    # Not by isinstance, which looks at all of a Protocol's members every time.
    reader_of: BlockSource | None = tensors if hasattr(tensors, "block_reader") else None
    if reader_of is not None:
        return reader_of.block_reader(name, start, loops)
    if isinstance(tensors, dict) and is_plain(tensors[name]):
        return DenseBlocks(tensors[name].numpy())
    return None


def _adjusted_reader(
    tensors: AdjustedTensors, name: str, start: Float32s, loops: Kernels
) -> BlockReader | None:
    """Return the reader of a tensor as the server would have got it, and note its m_k."""
    trained = block_reader(tensors.trained, name, start, loops)
    if trained is None or not tensors.is_adjusted(name):
        return trained
    members, factor = tensors.rescaled(name)
    masked = MaskedBlocks(
        trained,
        start,
        entry_count(len(start), tensors.rate),
        None if members is None else members.numpy(),
        factor,
        loops,
        keep_sign=tensors.keeps_sign(name),
    )
    tensors.discarded[name] = masked.discarded
    return masked


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor can be read in blocks: float32 on the CPU."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def parts(entries: int, together: int = PART) -> Iterator[slice]:
    """Divide so many entries into slices of up to `together`."""
    for begin in range(0, entries, together):
        yield slice(begin, min(begin + together, entries))
