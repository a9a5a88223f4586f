"""The server step on a CPU near the speed of memory: the formulas of `tensorwise`, in blocks.

A survey finds the inner products and norms and, one client after the other, the magnitudes below
which entries are masked; with the weights decided, another pass masks, averages and scores. What is
not made for this is left to `tensorwise`: another dtype than float32, magnitudes that sums in
float32 cannot hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpw_flwr.algorithm.adjustment import (
    amplify_,
    consensus_score_,
    consensus_set,
    entry_count,
    factor_of_magnitudes,
)
from fedpw_flwr.algorithm.blocks import (
    TASK,
    BlockedTensor,
    DenseUpdate,
    Mask,
    in_threads,
    is_plain,
    threads_for,
    update_writer,
)
from fedpw_flwr.algorithm.cohort import Cohort, Measured, discarded_magnitude
from fedpw_flwr.algorithm.direction import LARGEST_PRODUCT, SMALLEST_PRODUCT
from fedpw_flwr.algorithm.selection import (
    BLOCK,
    EVERYTHING,
    Float32s,
    Scratch,
    Smallest,
    Tally,
    bracket,
)
from fedpw_flwr.algorithm.tensors import TensorKind

__all__ = ["BlockedStep"]

_SMALLEST_SQUARE, _LARGEST_SQUARE = 1e-16, 1e30
"""Squared norms between which no square of an entry that counts is lost in float32."""

_LEAST_KEPT = 0.01
"""Share of ‖Δ_k‖² that has to be kept: less is not known well enough from what was masked."""

_SORTED = 1 << 12
"""Up to so many entries, sorting all clients' at once is faster than selecting one by one."""

_NOTHING = Mask(-1.0, 0)
"""Masks nothing."""

Moved = tuple[Tensor, Measured | None]


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
class _Plan(BlockedTensor):
    """A tensor and what has to be done to it.

    Attributes
    ----------
    shape : torch.Size
        Its shape.
    trainable : bool
        Whether it has a direction.
    counts : Sequence[int]
        Entries of each update that the server masks.
    scored : bool
        Whether the clients' agreement is measured.
    """

    shape: torch.Size
    trainable: bool
    counts: Sequence[int]
    scored: bool

    @property
    def groups(self) -> list[range]:
        """Places of the clients, in groups of about as many entries as a task has."""
        clients, together = len(self.writers), max(1, TASK // len(self.start))
        return [
            range(first, min(first + together, clients)) for first in range(0, clients, together)
        ]


class BlockedStep:
    """Those tensors of a round that are computed in blocks; built, it has surveyed them.

    Parameters
    ----------
    global_model : Mapping[str, Tensor]
        w.
    kinds : Mapping[str, TensorKind]
        What each tensor is.
    cohort : Cohort
        The participants.
    with_directions : bool
        Whether directions are needed.
    """

    def __init__(
        self,
        global_model: Mapping[str, Tensor],
        kinds: Mapping[str, TensorKind],
        cohort: Cohort,
        with_directions: bool,
    ) -> None:
        self._cohort = cohort
        self._directions: dict[str, Sequence[float]] = {}
        self._plans: list[tuple[_Plan, Sequence[Kept]]] = []
        found = (_plan(name, tensor, kinds[name], cohort) for name, tensor in global_model.items())
        for survey in _surveys([plan for plan in found if plan is not None], with_directions):
            if survey.directions is not None:
                self._directions[survey.plan.name] = survey.directions
            if survey.kept is not None:
                self._plans.append((survey.plan, survey.kept))

    def directions(self, name: str) -> Sequence[float] | None:
        """Return ⟨Δ_k, Σ_j Δ_j⟩ of a tensor; None where `direction` has to compute them."""
        return self._directions.get(name)

    def move(self, weights: Sequence[float]) -> Iterator[tuple[str, Moved]]:
        """Compute tensors of the new model, w − g, and what they say about consensus, by name."""
        averages = (_Average(plan, kept, weights) for plan, kept in self._plans)
        work = ((average, task) for average in averages for task in average.plan.tasks)

        def add(item: tuple[_Average, tuple[int, int]]) -> tuple[_Average, int]:
            average, (begin, end) = item
            average.add(begin, end)
            return average, end

        for average, end in in_threads(
            add, work, threads_for(sum(plan.size for plan, _ in self._plans))
        ):
            if end == len(average.plan.start):
                yield average.plan.name, average.moved(self._cohort)


def _plan(name: str, tensor: Tensor, kind: TensorKind, cohort: Cohort) -> _Plan | None:
    """Say what has to be done to a tensor; None where `tensorwise` has to do it."""
    on_cpu = torch.device(cohort.device).type == "cpu"
    if kind is TensorKind.INTEGER or not tensor.numel() or not (on_cpu and is_plain(tensor)):
        return None
    start = tensor.reshape(-1).numpy()
    writers = []
    for result in cohort.results:
        writer = update_writer(result.tensors, name, start)
        if writer is None:
            return None
        writers.append(writer)
    trainable = kind is TensorKind.TRAINABLE
    return _Plan(
        name=name,
        start=start,
        writers=writers,
        shape=tensor.shape,
        trainable=trainable,
        counts=cohort.masked_counts(tensor),
        scored=cohort.is_scored(tensor, trainable=trainable),
    )


@dataclass(frozen=True, eq=False)
class _Survey:
    """What the survey found of one tensor; None where it cannot tell."""

    plan: _Plan
    directions: Sequence[float] | None
    kept: Sequence[Kept] | None


def _surveys(plans: Sequence[_Plan], with_directions: bool) -> Iterator[_Survey]:
    """Survey the tensors, in their order."""

    def parts() -> Iterator[_Sums | _Masks]:
        for plan in plans:
            directed = with_directions and plan.trainable
            if directed or plan.scored or any(plan.counts):
                for begin, end in plan.tasks:
                    yield _Sums(plan, begin, end, directed)
            if any(plan.counts):
                for clients in plan.groups:
                    yield _Masks(plan, clients)

    looked_at = in_threads(
        lambda part: part.look(), parts(), threads_for(sum(plan.size for plan in plans))
    )
    found: dict[str, tuple[list[_Sums], list[_Masks]]] = {plan.name: ([], []) for plan in plans}
    for part in looked_at:
        sums, masks = found[part.plan.name]
        if isinstance(part, _Sums):
            sums.append(part)
        else:
            masks.append(part)
    return (_conclude(plan, *found[plan.name]) for plan in plans)


def _conclude(plan: _Plan, parts: Sequence[_Sums], masks: Sequence[_Masks]) -> _Survey:
    """Put together what was found of a tensor."""
    clients = range(len(plan.writers))
    if not parts:
        return _Survey(plan, None, [Kept(_NOTHING, 0.0, 0.0) for _ in clients])
    whole = parts[0]
    for part in parts[1:]:
        whole.add(part)
    directions = whole.directions()
    squares = whole.held_squares()
    if squares is None:
        return _Survey(plan, directions, None)
    found = [one for group in masks for one in group.found] or [(_NOTHING, None)] * len(clients)
    kept = [
        _kept(mask, masked, square, count, len(plan.start))
        for (mask, masked), square, count in zip(found, squares, plan.counts, strict=True)
    ]
    certain = [one for one in kept if one is not None]
    return _Survey(plan, directions, certain if len(certain) == len(kept) else None)


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


class _Sums:
    """What the survey adds up over a part of a tensor, one number a client.

    Parameters
    ----------
    plan : _Plan
        The tensor.
    begin, end : int
        The part.
    directed : bool
        Whether directions are needed.
    """

    def __init__(self, plan: _Plan, begin: int, end: int, directed: bool) -> None:
        self.plan = plan
        self._begin, self._end = begin, end
        self._directed = directed
        self._products = np.zeros(len(plan.writers))
        self._squares = np.zeros(len(plan.writers))
        self._moved = np.zeros(len(plan.writers), dtype=bool)

    def look(self) -> _Sums:
        """Read the part's updates."""
        for _, _, updates in self.plan.blocks(self._begin, self._end):
            rows = torch.from_numpy(updates)
            if self._directed:
                self._products += torch.mv(rows, rows.new_ones(len(rows)) @ rows).numpy()
            squares = torch.linalg.vecdot(rows, rows).numpy()
            self._squares += squares
            self._moved |= squares > 0
            for client in np.flatnonzero(squares == 0):
                self._moved[client] |= updates[client].any()
        return self

    def add(self, other: _Sums) -> None:
        """Take over the sums of another part."""
        self._products += other._products
        self._squares += other._squares
        self._moved |= other._moved

    def directions(self) -> Sequence[float] | None:
        """Return the inner products; None where they are not needed, or not held by float32."""
        held = self._directed and self._held(self._products, SMALLEST_PRODUCT, LARGEST_PRODUCT)
        return self._products.tolist() if held else None

    def held_squares(self) -> list[float] | None:
        """Return the squared norms; None where float32 did not hold one."""
        held = self._held(self._squares, _SMALLEST_SQUARE, _LARGEST_SQUARE)
        return self._squares.tolist() if held else None

    def _held(self, sums: npt.NDArray[np.float64], least: float, most: float) -> bool:
        """Say whether float32 held the sums; 0 is right where a client did not move the tensor."""
        size = np.abs(sums)
        return bool(np.all(((size > least) & (size < most)) | ~self._moved))


class _Masks:
    """Which entries of some clients' updates are masked.

    One client is looked at after the other, so that what is between its bracket is not held for
    all of them.

    Parameters
    ----------
    plan : _Plan
        The tensor.
    clients : range
        Places of the clients.
    """

    def __init__(self, plan: _Plan, clients: range) -> None:
        self.plan = plan
        self._clients = clients
        self.found: Sequence[tuple[Mask, Smallest | None]] = ()

    def look(self) -> _Masks:
        """Read the clients' updates."""
        entries = len(self.plan.start)
        if entries <= _SORTED:
            updates = np.empty((len(self._clients), entries), dtype=np.float32)
            for client, row in zip(self._clients, updates, strict=True):
                self.plan.writers[client](0, entries, row)
            counts = self.plan.counts[self._clients.start : self._clients.stop]
            self.found = _masks_by_sorting(updates, counts)
        else:
            scratch = Scratch(min(self.plan.block, entries))
            self.found = [self._mask(client, scratch) for client in self._clients]
        return self

    def _mask(self, client: int, scratch: Scratch) -> tuple[Mask, Smallest | None]:
        entries, count = len(self.plan.start), self.plan.counts[client]
        write = self.plan.writers[client]
        if not count or not isinstance(write, DenseUpdate):
            return _NOTHING, None
        for limits in (bracket(write.sample(), count, entries), EVERYTHING):
            tally = Tally(limits)
            for begin in range(0, entries, self.plan.block):
                end = min(begin + self.plan.block, entries)
                magnitudes = scratch.magnitudes[: end - begin]
                write(begin, end, magnitudes)
                tally.add(np.abs(magnitudes, out=magnitudes), begin, scratch)
            masked = tally.smallest(count)
            if masked is not None:
                break
        assert masked is not None
        mask = Mask(masked.threshold, entries)
        if masked.further_ties:
            begin, preceding = tally.block_of_tie(masked.threshold, masked.ties)
            row = np.empty(min(self.plan.block, entries - begin), dtype=np.float32)
            write(begin, begin + len(row), row)
            tie = np.flatnonzero(np.abs(row) == masked.threshold)[preceding]
            mask = Mask(masked.threshold, begin + int(tie))
        return mask, masked


def _masks_by_sorting(
    updates: Float32s, counts: Sequence[int]
) -> Sequence[tuple[Mask, Smallest | None]]:
    """Find what is masked of all updates of a small tensor at once."""
    clients, entries = updates.shape
    count = np.asarray(counts)
    magnitudes = np.abs(updates)
    magnitudes.sort(axis=1)
    thresholds = magnitudes[np.arange(clients), count - 1]
    is_masked = np.arange(entries) < count[:, None]
    masked = np.where(is_masked, magnitudes, 0)
    totals = masked.sum(axis=1, dtype=np.float64)
    squares = np.square(masked).sum(axis=1, dtype=np.float64)
    at_threshold = magnitudes == thresholds[:, None]
    ties = (at_threshold & is_masked).sum(axis=1)
    further_ties = (at_threshold & ~is_masked).sum(axis=1)
    found: list[tuple[Mask, Smallest | None]] = []
    for client in range(clients):
        if not count[client]:
            found.append((_NOTHING, None))
            continue
        threshold, first_kept_tie = float(thresholds[client]), entries
        if further_ties[client]:
            equal = np.flatnonzero(np.abs(updates[client]) == threshold)
            first_kept_tie = int(equal[ties[client]])
        smallest = Smallest(
            threshold,
            float(totals[client]),
            float(squares[client]),
            int(ties[client]),
            int(further_ties[client]),
        )
        found.append((Mask(threshold, first_kept_tie), smallest))
    return found


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
        self._weights = torch.tensor(weights, dtype=torch.float32)
        inverse = [1.0 / k.norm if k.norm > 0 else 0.0 for k in kept]
        self._inverse_norms = torch.tensor(inverse, dtype=torch.float32).unsqueeze(1)
        self._change = torch.empty(len(plan.start))
        self._score = torch.empty(len(plan.start) if plan.scored else 0)

    def add(self, begin: int, end: int) -> None:
        """Aggregate g = Σ λ_k Δ̃_k, and score (Σ_k x_k)² / Σ_k x_k² with x_k = Δ̃_k / ‖Δ̃_k‖."""
        for first, last, updates in self.plan.blocks(begin, end):
            rows = torch.from_numpy(updates)
            for row, k in zip(rows, self._kept, strict=True):
                k.mask.apply_(row, first)
            self._change[first:last] = self._weights @ rows
            if self.plan.scored:
                each = rows.new_ones(len(rows))
                total = each @ rows.mul_(self._inverse_norms)
                self._score[first:last] = consensus_score_(total, each @ rows.square_())

    def moved(self, cohort: Cohort) -> Moved:
        """Return w − g of the whole tensor, and what the next round needs of its agreement."""
        plan = self.plan
        measured = None
        amplified: Measured | None = None
        if plan.scored:
            measured = self._measured(cohort)
            amplified = measured if cohort.sent is None else None
        elif plan.trainable and cohort.rates is not None and cohort.sent is None:
            measured = Measured(torch.ones(()))
        start = torch.from_numpy(plan.start)
        for part in _parts(len(plan.start)):
            change = self._change[part]
            if amplified is not None and amplified.members is not None:
                amplify_(change, amplified.members[part], amplified.factor)
            torch.sub(start[part], change, out=change)
        if amplified is not None:
            measured = Measured(amplified.factor)
        return self._change.reshape(plan.shape), measured

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
        members = consensus_set(self._score, size)
        self._score = torch.empty(0)
        if not size:
            return Measured(torch.ones(()), members)
        total = 0.0
        for part in _parts(len(plan.start)):
            change = torch.where(members[part], self._change[part], 0.0)
            if consensus is not None and plan.name in consensus.members:
                sent, factor = consensus.members[plan.name][part], consensus.factors[plan.name]
                change /= torch.where(sent, torch.tensor(factor), 1.0)
            total += float(change.abs_().sum())
        mean_discarded = sum(discarded) / len(discarded)
        factors = factor_of_magnitudes(torch.tensor(total / size), torch.tensor(mean_discarded))
        return Measured(factors, members)


def _parts(entries: int) -> Iterator[slice]:
    return (slice(begin, begin + BLOCK) for begin in range(0, entries, BLOCK))
