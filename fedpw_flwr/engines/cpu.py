"""The server step on a CPU near the speed of memory: what `Reference` computes, in few readings.

A survey reads every update once, a block of all clients at a time, for inner products and norms,
and once more, one client after the other, for the magnitude below which its entries are masked.
With the weights decided, a last reading masks, averages and scores. `kernels` has the loops. One
thread runs them: two were measured to be no faster.

What is not made for this is left to `Reference`: another dtype than float32, magnitudes that sums
in float32 cannot hold, mappings of which only whole tensors can be had.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpw_flwr.algorithm.adjustment import consensus_score_, entry_count, factor_of_magnitudes
from fedpw_flwr.algorithm.cohort import Cohort, discarded_magnitude
from fedpw_flwr.algorithm.direction import LARGEST_PRODUCT, SMALLEST_PRODUCT
from fedpw_flwr.algorithm.engine import Measured
from fedpw_flwr.algorithm.reference import Reference
from fedpw_flwr.algorithm.tensors import TensorKind
from fedpw_flwr.engines.blocks import (
    PART,
    BlockReader,
    DenseBlocks,
    Mask,
    block_reader,
    is_plain,
    mask_of,
    parts,
)
from fedpw_flwr.engines.kernels import Bools, Float32s, Kernels, kernels
from fedpw_flwr.engines.selection import EVERYTHING, SAMPLED, Smallest, bracket, select, smallest

__all__ = ["CpuEngine"]

_SMALLEST_SQUARE, _LARGEST_SQUARE = 1e-16, 1e30
"""Squared norms between which no square of an entry that counts is lost in float32."""

_LEAST_KEPT = 0.01
"""Share of ‖Δ_k‖² that has to be kept: less is not known well enough from what was masked."""

_BLOCK = 1 << 16
_TOGETHER = 3 << 18
"""Entries of a block, 256 KiB, and of the same block of up to 768 clients, 3 MiB, at most."""

_SORTED = 1 << 12
"""Up to so many entries, sorting all clients' at once is faster than selecting one by one."""

_TINY = np.nextafter(np.float32(0), np.float32(1))

_NOTHING = Mask(-1.0, 0)
"""Masks nothing."""


@dataclass(frozen=True)
class Kept:
    """What masking leaves of one client's update of a tensor.

    Attributes
    ----------
    mask : Mask
        Which entries are masked.
    discarded : float
        m_k, the mean magnitude of the masked entries; 0 where there are none.
    norm : float
        ‖Δ̃_k‖ of what is kept.
    """

    mask: Mask
    discarded: float
    norm: float


@dataclass(frozen=True, eq=False)
class _Plan:
    """A tensor and what has to be done to it.

    Attributes
    ----------
    name : str
        Its name.
    start : NDArray[float32]
        w, flat.
    readers : Sequence[BlockReader]
        How to read each w_k.
    loops : Kernels
        What computes.
    shape : torch.Size
        Its shape.
    trainable : bool
        Whether it is trained.
    counts : Sequence[int]
        Entries of each update that the server masks.
    scored : bool
        Whether the clients' agreement is measured.
    """

    name: str
    start: Float32s
    readers: Sequence[BlockReader]
    loops: Kernels
    shape: torch.Size
    trainable: bool
    counts: Sequence[int]
    scored: bool

    @property
    def block(self) -> int:
        """Entries of all clients that are looked at together: a multiple of 1024."""
        return max(1 << 10, min(_BLOCK, _TOGETHER // len(self.readers) // 1024 * 1024))

    def parts(self) -> Iterator[slice]:
        """Divide the entries into parts of up to `PART`."""
        return parts(len(self.start))


class CpuEngine(Reference):
    """The engine that computes in blocks, and leaves to `Reference` the tensors it cannot.

    Parameters
    ----------
    global_model : Mapping[str, Tensor]
        w.
    kinds : Mapping[str, TensorKind]
        What each tensor is.
    cohort : Cohort
        The participants.
    """

    def __init__(
        self, global_model: Mapping[str, Tensor], kinds: Mapping[str, TensorKind], cohort: Cohort
    ) -> None:
        super().__init__(global_model, kinds, cohort)
        entries = sum(tensor.numel() for tensor in global_model.values())
        loops = kernels(entries * len(cohort.results))
        self._plans = {
            name: _plan(name, tensor, kinds[name], cohort, loops)
            for name, tensor in global_model.items()
        }
        self._kept: dict[str, Sequence[Kept] | None] = {}

    def add_directions(self, directions: list[float], name: str) -> None:
        """Add one tensor's part of d_k to the running sums; one survey serves `moved`, too."""
        plan, known = self._plans[name], None
        if plan is not None:
            known, self._kept[name] = _survey(plan, directed=plan.trainable)
        if known is None:
            super().add_directions(directions, name)
        else:
            directions[:] = [total + part for total, part in zip(directions, known, strict=True)]

    def moved(self, name: str, weights: Sequence[float]) -> tuple[Tensor, Measured | None]:
        """Compute one tensor of the new model, w − g, and what it says about consensus."""
        plan = self._plans[name]
        if plan is not None and name not in self._kept:
            _, self._kept[name] = _survey(plan, directed=False)
        kept = self._kept.get(name)
        if plan is None or kept is None:
            return super().moved(name, weights)
        return _Average(plan, kept, weights).moved(self._cohort)


def _plan(
    name: str, tensor: Tensor, kind: TensorKind, cohort: Cohort, loops: Kernels
) -> _Plan | None:
    """Return what has to be done to a tensor; None where `Reference` has to do it."""
    if kind is TensorKind.INTEGER or not tensor.numel() or not is_plain(tensor):
        return None
    start = tensor.reshape(-1).numpy()
    readers = []
    for result in cohort.results:
        reader = block_reader(result.tensors, name, start, loops)
        if reader is None:
            return None
        readers.append(reader)
    trainable, counts = kind is TensorKind.TRAINABLE, cohort.masked_counts(tensor)
    if any(counts) and not all(isinstance(reader, DenseBlocks) for reader in readers):
        return None
    return _Plan(
        name=name,
        start=start,
        readers=readers,
        loops=loops,
        shape=tensor.shape,
        trainable=trainable,
        counts=counts,
        scored=cohort.is_scored(tensor, trainable=trainable),
    )


Found = tuple[Mask, Smallest | None]
"""What is masked of one client's update."""


def _survey(plan: _Plan, *, directed: bool) -> tuple[Sequence[float] | None, Sequence[Kept] | None]:
    """Find out what has to be known of the updates of one tensor before the weights.

    Returns
    -------
    tuple[Sequence[float] | None, Sequence[Kept] | None]
        ⟨Δ_k, Σ_j Δ_j⟩, None where they are not `directed` or float32 did not hold them; and what is
        kept of each update, None where float32 or the sums do not tell.
    """
    if not (directed or plan.scored or any(plan.counts)):
        return None, [Kept(_NOTHING, 0.0, 0.0)] * len(plan.readers)
    sums = np.zeros((len(plan.readers), 2))
    for part in plan.parts():
        sums += _sums(plan, part, directed=directed)
    directions = None
    if directed:
        directions = _held(plan, sums[:, 0], SMALLEST_PRODUCT, LARGEST_PRODUCT)
    squares = _held(plan, sums[:, 1], _SMALLEST_SQUARE, _LARGEST_SQUARE)
    if squares is None:
        return directions, None
    kept = [
        _kept(*mask, square, count, len(plan.start))
        for mask, square, count in zip(_masks(plan), squares, plan.counts, strict=True)
    ]
    certain = [one for one in kept if one is not None]
    return directions, certain if len(certain) == len(kept) else None


def _held(
    plan: _Plan, sums: npt.NDArray[np.float64], least: float, most: float
) -> list[float] | None:
    """Return the sums where float32 held them; 0 is right where a tensor was not moved."""
    for client, size in enumerate(np.abs(sums).tolist()):
        if not least < size < most and (size > 0 or _is_moved(plan, client)):
            return None
    each: list[float] = sums.tolist()
    return each


def _masks(plan: _Plan) -> Iterable[Found]:
    """Find what is masked of each client's update."""
    clients = range(len(plan.readers))
    if not any(plan.counts):
        return [(_NOTHING, None)] * len(clients)
    if len(plan.start) > _SORTED:
        return (_masked(plan, client) for client in clients)
    together = max(1, PART // len(plan.start))
    groups = (clients[first : first + together] for first in clients[::together])
    return (found for group in groups for found in _masked_by_sorting(plan, group))


def _kept(
    mask: Mask, masked: Smallest | None, square: float, count: int, entries: int
) -> Kept | None:
    """Put together what was found of an update; None where too little is kept to know its norm."""
    if masked is None:
        return Kept(mask, 0.0, math.sqrt(square))
    left = square - masked.squares if count < entries else 0.0
    if count < entries and left < _LEAST_KEPT * square:
        return None
    return Kept(mask, masked.total / count, math.sqrt(left))


def _sums(plan: _Plan, part: slice, *, directed: bool) -> npt.NDArray[np.float64]:
    """Return ⟨Δ_k, Σ_j Δ_j⟩ and ‖Δ_k‖² over a part of a tensor, shape (N, 2)."""
    loops, sums = plan.loops, np.zeros((len(plan.readers), 2))
    rooms = np.empty((len(plan.readers), min(plan.block, part.stop - part.start)), np.float32)
    for begin in range(part.start, part.stop, plan.block):
        end = min(begin + plan.block, part.stop)
        start, total = plan.start[begin:end], np.zeros(end - begin, dtype=np.float32)
        rows = [
            reader.read(begin, end, room[: end - begin])
            for reader, room in zip(plan.readers, rooms, strict=True)
        ]
        if directed:
            for trained in rows:
                loops.add_update(start, trained, total)
        sums += [loops.products(start, trained, total) for trained in rows]
    return sums


def _masked(plan: _Plan, client: int) -> Found:
    """Find what is masked of one client's update of a tensor."""
    entries, count, reader = len(plan.start), plan.counts[client], plan.readers[client]
    if not count:
        return _NOTHING, None
    assert isinstance(reader, DenseBlocks)
    sample = np.abs(plan.start[::SAMPLED] - reader.sample())
    room = np.empty(min(PART, entries), dtype=np.float32)
    between = np.empty(len(room) + 8, dtype=np.float32)
    for low, high in (bracket(sample, count, entries), EVERYTHING):
        only_zeros = high == 0
        if only_zeros:
            # Masking them changes nothing, so counting them will do.
            low = high = _TINY
        sums, collected = np.zeros(3), []
        for part in plan.parts():
            trained = reader.read(part.start, part.stop, room[: part.stop - part.start])
            *below, number = plan.loops.collect_update(
                plan.start[part], trained, low, high, between
            )
            sums += below
            collected.append(between[:number].copy())
        below_low, total, squares = sums.tolist()
        if only_zeros and below_low >= count:
            return _NOTHING, Smallest(0.0, 0.0, 0.0, count, 0)
        masked = select(collected, count - int(below_low), total, squares, entries, plan.loops)
        if masked is not None:
            break
    else:
        # Only NaN is not between 0 and infinity, where a difference overflowed; so has its norm.
        return _NOTHING, None
    tie = _tie(plan, client, room, masked) if masked.further_ties else entries
    return Mask(masked.threshold, tie), masked


def _masked_by_sorting(plan: _Plan, clients: range) -> list[Found]:
    """Find what is masked of some clients' updates of a small tensor at once."""
    entries = len(plan.start)
    updates = np.empty((len(clients), entries), dtype=np.float32)
    for client, row in zip(clients, updates, strict=True):
        np.subtract(plan.start, plan.readers[client].read(0, entries, row), out=row)
    magnitudes = np.abs(updates)
    magnitudes.sort(axis=1)
    count = np.asarray(plan.counts[clients.start : clients.stop])
    thresholds = magnitudes[np.arange(len(clients)), count - 1]
    is_masked = np.arange(entries) < count[:, None]
    masked = np.where(is_masked, magnitudes, np.float32(0)).astype(np.float64)
    totals, squares = masked.sum(axis=1), np.square(masked).sum(axis=1)
    at_threshold = magnitudes == thresholds[:, None]
    ties = np.count_nonzero(at_threshold & is_masked, axis=1)
    further_ties = np.count_nonzero(at_threshold & ~is_masked, axis=1)
    found: list[Found] = []
    for index in range(len(clients)):
        if not count[index]:
            found.append((_NOTHING, None))
            continue
        masked_ones = Smallest(
            float(thresholds[index]),
            float(totals[index]),
            float(squares[index]),
            int(ties[index]),
            int(further_ties[index]),
        )
        found.append((mask_of(masked_ones, np.abs(updates[index])), masked_ones))
    return found


def _is_moved(plan: _Plan, client: int) -> bool:
    """Return whether an update without a norm in float32 is one."""
    for part in plan.parts():
        room = np.empty(part.stop - part.start, dtype=np.float32)
        trained = plan.readers[client].read(part.start, part.stop, room)
        if not np.array_equal(trained, plan.start[part]):
            return True
    return False


def _tie(plan: _Plan, client: int, room: Float32s, masked: Smallest) -> int:
    """Return the first entry that is kept although it has the magnitude of the threshold."""
    preceding = masked.ties
    for part in plan.parts():
        trained = plan.readers[client].read(part.start, part.stop, room[: part.stop - part.start])
        ties = np.flatnonzero(np.abs(plan.start[part] - trained) == masked.threshold)
        if preceding < len(ties):
            first: int = part.start + int(ties[preceding])
            return first
        preceding -= len(ties)
    raise IndexError(f"there are not so many entries of magnitude {masked.threshold}")


class _Average:
    """The weighted average of one tensor's masked updates, and how much the clients agree.

    Parameters
    ----------
    plan : _Plan
        The tensor.
    kept : Sequence[Kept]
        What the survey found.
    weights : Sequence[float]
        λ_k.
    """

    def __init__(self, plan: _Plan, kept: Sequence[Kept], weights: Sequence[float]) -> None:
        self.plan = plan
        self._kept = kept
        self._weights = [np.float32(weight) for weight in weights]
        self._inverse = [np.float32(1.0 / k.norm if k.norm > 0 else 0.0) for k in kept]
        self._change = np.zeros_like(plan.start)
        self._score = np.empty(len(plan.start) if plan.scored else 0, dtype=np.float32)
        for block in parts(len(plan.start), _BLOCK):
            self._add(block)

    def _add(self, part: slice) -> None:
        """Aggregate g = Σ λ_k Δ̃_k, and score (Σ_k x_k)² / Σ_k x_k² with x_k = Δ̃_k / ‖Δ̃_k‖."""
        begin, end = part.start, part.stop
        start, change, loops = self.plan.start[part], self._change[part], self.plan.loops
        room = np.empty(end - begin, dtype=np.float32)
        total, squares = np.zeros_like(room), np.zeros_like(room)
        for reader, kept, weight, inverse in zip(
            self.plan.readers, self._kept, self._weights, self._inverse, strict=True
        ):
            trained = reader.read(begin, end, room)
            for piece, threshold in kept.mask.pieces(begin, end):
                loops.average(
                    *(start[piece], trained[piece], weight, threshold, inverse),
                    *(change[piece], total[piece], squares[piece]),
                )
        if self.plan.scored:
            score = consensus_score_(torch.from_numpy(total), torch.from_numpy(squares))
            self._score[part] = score.numpy()

    def moved(self, cohort: Cohort) -> tuple[Tensor, Measured | None]:
        """Return w − g of the whole tensor, and what the next round needs of its agreement."""
        plan, measured = self.plan, None
        members, factor = np.zeros(0, dtype=np.bool_), 1.0
        if plan.scored:
            measured = self._measured(cohort)
        elif plan.trainable and cohort.rates is not None and cohort.sent is None:
            measured = Measured(torch.ones(()))
        if measured is not None and measured.members is not None and cohort.sent is None:
            members, factor = measured.members.numpy(), float(measured.factor)
        for part in plan.parts():
            if factor == 1.0:
                np.subtract(plan.start[part], self._change[part], out=self._change[part])
            else:
                plan.loops.move(
                    plan.start[part], self._change[part], members[part], np.float32(factor)
                )
        return torch.from_numpy(self._change).reshape(plan.shape), measured

    def _measured(self, cohort: Cohort) -> Measured:
        """Find C and f; of the size of the tensor, only C and what it takes to find it is held."""
        plan, discarded = self.plan, [k.discarded for k in self._kept]
        consensus = None
        if cohort.sent is not None:
            discarded = [
                discarded_magnitude(result, plan.name, k.norm, len(plan.start))
                for result, k in zip(cohort.results, self._kept, strict=True)
            ]
            consensus = cohort.sent.consensus
        size = entry_count(len(plan.start), cohort.avg_drop_rate)
        members = _consensus_set(self._score, size, plan.loops)
        self._score = np.empty(0, dtype=np.float32)
        if not size:
            return Measured(torch.ones(()), torch.from_numpy(members))
        # Nothing was multiplied where there is no C of an earlier round: any will do.
        sent, factor = members, 1.0
        if consensus is not None and plan.name in consensus.members:
            sent = consensus.members[plan.name].numpy()
            factor = consensus.factors[plan.name]
        total = plan.loops.magnitude_on(self._change, members, sent, np.float32(factor))
        magnitudes = torch.tensor(total / size), torch.tensor(sum(discarded) / len(discarded))
        return Measured(factor_of_magnitudes(*magnitudes), torch.from_numpy(members))


def _consensus_set(score: Float32s, count: int, loops: Kernels) -> Bools:
    """Do what `adjustment.consensus_set` does."""
    left_out = len(score) - count
    members = np.full(len(score), left_out == 0)
    if count and left_out:
        found = smallest(score, left_out, loops)
        loops.choose_above(score, np.float32(found.threshold), found.further_ties, members)
    return members
