"""The server step on a CPU near the speed of memory: what `Reference` computes, in few readings.

A survey reads every update once, a block of all clients at a time, for inner products and norms,
and once more, one client after the other, for the magnitude below which its entries are masked.
With the weights decided, a last reading masks, averages and scores. `compiled` has the loops. One
thread runs them: two were measured to be no faster.

What is not made for this is left to `Reference`: another dtype than float32, magnitudes that sums
in float32 cannot hold, mappings of which only whole tensors can be had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpw_flwr.algorithm.adjustment import consensus_score_, entry_count, factor_of_magnitudes
from fedpw_flwr.algorithm.client_step import rescaled
from fedpw_flwr.algorithm.direction import LARGEST_PRODUCT, SMALLEST_PRODUCT
from fedpw_flwr.algorithm.reference import Cohort, Measured, Reference
from fedpw_flwr.algorithm.tensors import TensorKind
from fedpw_flwr.engines import compiled
from fedpw_flwr.engines.blocks import (
    NOTHING,
    BlockReader,
    DenseBlocks,
    Mask,
    block_reader,
    is_plain,
    masked,
)
from fedpw_flwr.engines.compiled import Bools, Float32s
from fedpw_flwr.engines.selection import PART, parts, smallest_of

_SMALLEST_SQUARE, _LARGEST_SQUARE = 1e-16, 1e30
"""Squared norms between which no square of an entry that counts is lost in float32."""

_LEAST_KEPT = 0.01
"""Share of ‖Δ_k‖² that has to be kept: less is not known well enough from what was masked."""

_BLOCK = 1 << 16
_TOGETHER = 3 << 18
"""Entries of a block, 256 KiB, and of the same block of up to 768 clients, 3 MiB, at most."""


@dataclass(frozen=True)
class Kept:
    """What masking leaves of one client's update of a tensor: m_k is `discarded`, ‖Δ̃_k‖ `norm`."""

    mask: Mask
    discarded: float
    norm: float


@dataclass(frozen=True, eq=False)
class Blocks:
    """One tensor of a round: w, flat, and how to read each w_k.

    `counts` are the entries of each update that the server masks; the clients' agreement is
    measured where it `is_scored`.
    """

    name: str
    start: Float32s
    readers: Sequence[BlockReader]
    is_trainable: bool
    counts: Sequence[int]
    is_scored: bool


class CpuEngine(Reference):
    """The engine that computes in blocks, and leaves to `Reference` the tensors it cannot."""

    def __init__(
        self, global_model: Mapping[str, Tensor], kinds: Mapping[str, TensorKind], cohort: Cohort
    ) -> None:
        super().__init__(global_model, kinds, cohort)
        self._blocks = {
            name: _blocks(name, tensor, kinds[name], cohort)
            for name, tensor in global_model.items()
        }
        self._kept: dict[str, Sequence[Kept] | None] = {}

    def add_directions(self, directions: list[float], name: str) -> None:
        """Add one tensor's part of d_k to the running sums; one survey serves `moved`, too."""
        tensor, known = self._blocks[name], None
        if tensor is not None:
            known, self._kept[name] = _survey(tensor, is_directed=tensor.is_trainable)
        if known is None:
            super().add_directions(directions, name)
        else:
            directions[:] = [total + part for total, part in zip(directions, known, strict=True)]

    def moved(self, name: str, weights: Sequence[float]) -> tuple[Tensor, Measured | None]:
        """Compute one tensor of the new model, w − g, and what it says about consensus."""
        tensor, cohort = self._blocks[name], self._cohort
        if tensor is not None and name not in self._kept:
            _, self._kept[name] = _survey(tensor, is_directed=False)
        kept = self._kept.get(name)
        if tensor is None or kept is None:
            return super().moved(name, weights)

        # Average, and find out where the clients agree.
        change, score = _averaged(tensor, kept, weights)
        measured, members, factor = None, None, 1.0
        if tensor.is_scored:
            members = _consensus_set(score, entry_count(len(change), cohort.avg_drop_rate))
            del score
            measured = _measured(tensor, kept, cohort, change, members)
            factor = float(measured.factor) if cohort.sent is None else 1.0

        # Take the step, amplified if it is the server that does.
        for part in parts(len(change)):
            if members is None or factor == 1.0:
                np.subtract(tensor.start[part], change[part], out=change[part])
            else:
                compiled.move(tensor.start[part], change[part], members[part], np.float32(factor))
        return torch.from_numpy(change).reshape(self._global_model[name].shape), measured


def _blocks(name: str, tensor: Tensor, kind: TensorKind, cohort: Cohort) -> Blocks | None:
    """Return how a tensor is read in blocks; None where `Reference` has to compute it."""
    if kind is TensorKind.INTEGER or not tensor.numel() or not is_plain(tensor):
        return None
    start, readers = tensor.reshape(-1).numpy(), []
    counts = cohort.masked_counts(tensor)
    for result in cohort.results:
        reader = block_reader(result.tensors, name, start)
        if reader is None or (any(counts) and not isinstance(reader, DenseBlocks)):
            return None
        readers.append(reader)
    is_trainable = kind is TensorKind.TRAINABLE
    is_scored = cohort.is_scored(tensor, trainable=is_trainable)
    return Blocks(name, start, readers, is_trainable, counts, is_scored)


def _survey(
    tensor: Blocks, *, is_directed: bool
) -> tuple[Sequence[float] | None, Sequence[Kept] | None]:
    """Find out what has to be known of the updates of one tensor before the weights.

    Returns ⟨Δ_k, Σ_j Δ_j⟩, None where they are not asked for or float32 did not hold them; and what
    is kept of each update, None where float32 or the sums do not tell.
    """
    if not (is_directed or tensor.is_scored or any(tensor.counts)):
        return None, [Kept(NOTHING, 0.0, 0.0)] * len(tensor.readers)
    directions, sums = None, _sums(tensor, is_directed=is_directed)
    if is_directed:
        directions = _held(tensor, sums[:, 0], SMALLEST_PRODUCT, LARGEST_PRODUCT)
    squares = _held(tensor, sums[:, 1], _SMALLEST_SQUARE, _LARGEST_SQUARE)
    if squares is None:
        return directions, None

    kept, entries = [], len(tensor.start)
    for reader, square, count in zip(tensor.readers, squares, tensor.counts, strict=True):
        mask, found = masked(reader, tensor.start, count)
        left = square - found.squares if count < entries else 0.0
        if count < entries and left < _LEAST_KEPT * square:
            return directions, None
        kept.append(Kept(mask, found.total / max(count, 1), math.sqrt(left)))
    return directions, kept


def _sums(tensor: Blocks, *, is_directed: bool) -> npt.NDArray[np.float64]:
    """Return ⟨Δ_k, Σ_j Δ_j⟩ and ‖Δ_k‖², shape (N, 2)."""
    count = len(tensor.readers)
    # A multiple of 1024, as `PackedBlocks` needs it.
    block = max(1 << 10, min(_BLOCK, _TOGETHER // count // 1024 * 1024))
    sums = np.zeros((count, 2))
    rooms = np.empty((count, min(block, len(tensor.start))), np.float32)
    for large in parts(len(tensor.start)):
        sums_of_part = np.zeros((count, 2))
        for begin in range(large.start, large.stop, block):
            end = min(begin + block, large.stop)
            start, total = tensor.start[begin:end], np.zeros(end - begin, dtype=np.float32)
            rows = [
                reader.read(begin, end, room[: end - begin])
                for reader, room in zip(tensor.readers, rooms, strict=True)
            ]
            if is_directed:
                for trained in rows:
                    compiled.add_update(start, trained, total)
            sums_of_part += [compiled.products(start, trained, total) for trained in rows]
        sums += sums_of_part
    return sums


def _held(
    tensor: Blocks, sums: npt.NDArray[np.float64], least: float, most: float
) -> list[float] | None:
    """Return the sums where float32 held them; 0 is right where a tensor was not moved."""
    for reader, size in zip(tensor.readers, np.abs(sums).tolist(), strict=True):
        if not least < size < most and (size > 0 or _is_moved(reader, tensor.start)):
            return None
    each: list[float] = sums.tolist()
    return each


def _is_moved(reader: BlockReader, start: Float32s) -> bool:
    """Return whether an update without a norm in float32 is one."""
    room = np.empty(min(PART, len(start)), dtype=np.float32)
    for part in parts(len(start)):
        trained = reader.read(part.start, part.stop, room[: part.stop - part.start])
        if not np.array_equal(trained, start[part]):
            return True
    return False


def _averaged(
    tensor: Blocks, kept: Sequence[Kept], weights: Sequence[float]
) -> tuple[Float32s, Float32s]:
    """Aggregate g = Σ λ_k Δ̃_k, and score (Σ_k x_k)² / Σ_k x_k² with x_k = Δ̃_k / ‖Δ̃_k‖.

    The score has no entries where it is not asked for.
    """
    change = np.zeros_like(tensor.start)
    score = np.empty(len(change) if tensor.is_scored else 0, dtype=np.float32)
    each = [
        (reader, one.mask, np.float32(weight), np.float32(1.0 / one.norm if one.norm > 0 else 0.0))
        for reader, one, weight in zip(tensor.readers, kept, weights, strict=True)
    ]
    for block in parts(len(change), _BLOCK):
        start, changed = tensor.start[block], change[block]
        total, squares, room = np.zeros_like(start), np.zeros_like(start), np.empty_like(start)
        for reader, mask, weight, inverse_norm in each:
            trained = reader.read(block.start, block.stop, room)
            for piece, threshold in mask.pieces(block.start, block.stop):
                compiled.average(
                    start[piece],
                    trained[piece],
                    weight,
                    threshold,
                    inverse_norm,
                    changed[piece],
                    total[piece],
                    squares[piece],
                )
        if tensor.is_scored:
            of_block = consensus_score_(torch.from_numpy(total), torch.from_numpy(squares))
            score[block] = of_block.numpy()
    return change, score


def _consensus_set(score: Float32s, count: int) -> Bools:
    """Do what `adjustment.consensus_set` does."""
    left_out = len(score) - count
    if not (count and left_out):
        return np.full(len(score), left_out == 0)
    found = smallest_of(score, left_out)
    members: Bools = score > found.threshold
    members[np.flatnonzero(score == found.threshold)[: found.further_ties]] = True
    return members


def _measured(
    tensor: Blocks, kept: Sequence[Kept], cohort: Cohort, change: Float32s, members: Bools
) -> Measured:
    """Find f; the factor that the clients multiplied by is divided out of g, on the C they had."""
    size = entry_count(len(change), cohort.avg_drop_rate)
    if not size:
        return Measured(torch.ones(()), torch.from_numpy(members))
    if cohort.sent is None:
        consensus, discarded = None, sum(one.discarded for one in kept) / len(kept)
    else:
        norms = [one.norm for one in kept]
        consensus = cohort.sent.consensus
        discarded = cohort.mean_discarded(tensor.name, norms, len(change))
    agreed, factor = rescaled(consensus, tensor.name)
    # Nothing was multiplied where there is no C of an earlier round: any will do.
    sent = members if agreed is None else agreed.numpy()
    total = compiled.magnitude_on(change, members, sent, np.float32(factor))
    found = factor_of_magnitudes(torch.tensor(total / size), torch.tensor(discarded))
    return Measured(found, torch.from_numpy(members))
