"""Clients' tensors, of which a block of entries is read at a time.

What lies in memory is read where it is. Of what has to be made first, packed or to be masked, only
a block is ever made, which is used while it is in the cache.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpw_flwr.algorithm.adjustment import entry_count
from fedpw_flwr.algorithm.client_step import AdjustedTensors, rescaled
from fedpw_flwr.engines import compiled
from fedpw_flwr.engines.compiled import Float32s
from fedpw_flwr.engines.selection import PART, SAMPLED, Smallest, parts, smallest


class BlockReader(Protocol):
    """One client's w_k of one tensor, of which a block can be had without making the whole."""

    def read(self, begin: int, end: int, room: Float32s) -> Float32s:
        """Return w_k[begin:end]: a view, or `room`, written to; `begin` is a multiple of 1024."""
        ...


def block_reader(tensors: Mapping[str, Tensor], name: str, start: Float32s) -> BlockReader | None:
    """Return the reader of one client's tensor; None where only the whole can be had.

    w is `start`, flat. `tensors` are a dict or of `fedpw_flwr.wire.arrays`; of another mapping
    nothing is known about what making its tensors costs, so none of them is held.
    """
    if isinstance(tensors, AdjustedTensors):
        trained = block_reader(tensors.trained, name, start)
        if not tensors.is_adjusted(name):
            return trained
        if not isinstance(trained, DenseBlocks):
            return None
        return AdjustedBlocks(trained, start, tensors, name)
    if isinstance(tensors, dict):
        return DenseBlocks(tensors[name].numpy()) if is_plain(tensors[name]) else None
    if not hasattr(tensors, "packed_update"):
        return None
    arrays: Any = tensors
    update = arrays.packed_update(name)
    if update is not None:
        return PackedBlocks(update, start)
    # As it came: what is not float32 is cast a block at a time.
    array = arrays.ndarray(name)
    return DenseBlocks(array) if array.dtype.kind == "f" else None


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor can be read in blocks: float32 on the CPU."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


class DenseBlocks:
    """w_k of a tensor that lies in memory, of any shape and floating dtype; not copied."""

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
class PackedBlocks:
    """w_k = w − Δ̃_k of a packed update of `fedpw_flwr.wire`, rounded as if it had come dense."""

    update: Any
    start: Float32s

    def read(self, begin: int, end: int, room: Float32s) -> Float32s:
        """Write w_k[begin:end] to `room`."""
        self.update.subtract_from(self.start[begin:end], begin, room, compiled.unpack)
        return room


@dataclass(frozen=True)
class Mask:
    """Which entries of an update are masked: those of no larger magnitude than `threshold`.

    From the entry `first_kept_tie` on, those of just this magnitude are kept. None is masked where
    the threshold is negative.
    """

    threshold: float
    first_kept_tie: int

    def pieces(self, begin: int, end: int) -> Iterator[tuple[slice, np.float32]]:
        """Divide the entries [begin:end] where the threshold changes.

        Yields slices, counted from `begin`, and the largest magnitude that is masked in them.
        """
        threshold = np.float32(self.threshold)
        split = min(max(self.first_kept_tie - begin, 0), end - begin)
        if split > 0:
            yield slice(0, split), threshold
        if split < end - begin:
            yield slice(split, end - begin), np.nextafter(threshold, np.float32(0))


NOTHING = Mask(-1.0, sys.maxsize)
"""Masks nothing."""


def masked(reader: BlockReader, start: Float32s, count: int) -> tuple[Mask, Smallest]:
    """Find the `count` entries of smallest magnitude of one client's update, ties by lower index.

    The tensor has to lie in memory where `count` is not 0.
    """
    if not count:
        return NOTHING, Smallest(-1.0, 0.0, 0.0, 0, 0)
    assert isinstance(reader, DenseBlocks)
    entries, room = len(start), np.empty(min(PART, len(start)), dtype=np.float32)

    def trained(part: slice) -> Float32s:
        return reader.read(part.start, part.stop, room[: part.stop - part.start])

    found = smallest(
        lambda part, *bracket: compiled.collect_update(start[part], trained(part), *bracket),
        np.abs(start[::SAMPLED] - reader.sample()),
        count,
        entries,
    )
    preceding = found.ties
    # To mask what is 0 changes nothing.
    for part in parts(entries) if found.further_ties and found.threshold > 0 else ():
        ties = np.flatnonzero(np.abs(start[part] - trained(part)) == found.threshold)
        if preceding < len(ties):
            return Mask(found.threshold, part.start + int(ties[preceding])), found
        preceding -= len(ties)
    return Mask(found.threshold, entries), found


class AdjustedBlocks:
    """w − Δ̃_k of an update that the server adjusts as the client was asked to; m_k is noted."""

    def __init__(
        self, reader: DenseBlocks, start: Float32s, tensors: AdjustedTensors, name: str
    ) -> None:
        members, factor = rescaled(tensors.consensus, name)
        self._reader, self._start = reader, start
        self._members = None if members is None else members.numpy()
        self._factor, self._keep_sign = np.float32(factor), tensors.keeps_sign(name)
        count = entry_count(len(start), tensors.rate)
        self._mask, found = masked(reader, start, count)
        # In the precision in which clients report it.
        tensors.discarded[name] = float(np.float32(found.total / max(count, 1)))

    def read(self, begin: int, end: int, room: Float32s) -> Float32s:
        """Write w − Δ̃_k[begin:end] to `room`."""
        start = self._start[begin:end]
        np.subtract(start, self._reader.read(begin, end, room), out=room)
        if self._mask.threshold >= 0:
            for piece, largest in self._mask.pieces(begin, end):
                update = torch.from_numpy(room[piece])
                torch.hardshrink(update, float(largest), out=update)
        if self._members is not None:
            rescaled = self._members[begin:end]
            if self._keep_sign:
                rescaled = rescaled & (room * self._factor <= start)
            np.multiply(room, self._factor, out=room, where=rescaled)
        return np.subtract(start, room, out=room)
