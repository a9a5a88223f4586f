"""The server step on a GPU: the formulas of `tensorwise`, many tensors and all clients at once.

A GPU needs few and large operations, and a host that does not ask it for every number. Tensors are
laid side by side and the clients' updates one above the other: what is one number a client and
tensor (a threshold, a norm, f) is found for all of them together, and the host waits once for the
directions and once for each stack of tensors that comes back, however many tensors are in it.

Sums are taken in float64, in an order that the shapes decide: the same inputs on the same device
give the same bits. What is not made for this is left to `tensorwise`: integers, tensors without
entries or with more than fit, devices without float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpw_flwr.algorithm.adjustment import (
    consensus_score_,
    entry_count,
    factor_of_magnitudes,
)
from fedpw_flwr.algorithm.client_step import Consensus
from fedpw_flwr.algorithm.cohort import ClientResult, Cohort, Measured, discarded_magnitude
from fedpw_flwr.algorithm.tensors import TensorKind, saturated, working_dtype

__all__ = ["StackedStep"]

_TOGETHER = 1 << 26
"""Numbers of all clients that are looked at together; they are sorted, with indices of int64."""

_KEPT = 1 << 28
"""Numbers that stay on the device between the two looks at them: 1 GiB in float32."""

_BLOCK = 1 << 8
"""A tensor fills whole blocks of so many entries, the last one up with zeros."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_WITHOUT_FLOAT64 = ("mps",)

Moved = tuple[Tensor, Measured | None]


@dataclass(frozen=True, eq=False)
class _Plan:
    """A tensor w and what has to be done to it.

    Attributes
    ----------
    counts : Sequence[int]
        Entries of each update that the server masks.
    scored : bool
        Whether the clients' agreement is measured.
    """

    name: str
    start: Tensor
    trainable: bool
    counts: Sequence[int]
    scored: bool

    @property
    def entries(self) -> int:
        """Number of entries, n."""
        return self.start.numel()

    @property
    def columns(self) -> int:
        """Number of entries with those that fill up the last block."""
        return -(-self.entries // _BLOCK) * _BLOCK


class StackedStep:
    """Those tensors of a round that are computed in stacks; built, it knows their directions.

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
    together : int (default: 2²⁶)
        Bound on the numbers of all clients that are computed together; a tensor of which not even
        one client's fit is not taken.
    kept : int (default: 2²⁸)
        Bound on the numbers that stay on the device from the directions to the average; the others
        are sent there a second time.
    """

    def __init__(
        self,
        global_model: Mapping[str, Tensor],
        kinds: Mapping[str, TensorKind],
        cohort: Cohort,
        with_directions: bool,
        together: int = _TOGETHER,
        kept: int = _KEPT,
    ) -> None:
        self._cohort = cohort
        self._directions: dict[str, Sequence[float]] = {}
        found = (_plan(n, tensor, kinds[n], cohort, together) for n, tensor in global_model.items())
        plans = [plan for plan in found if plan is not None]
        self._stacked = list(_side_by_side(plans, together // len(cohort.results)))
        self._together = together
        self._kept: dict[int, list[Tensor]] = {}
        if with_directions:
            self._find_directions(kept)

    def directions(self, name: str) -> Sequence[float] | None:
        """Return ⟨Δ_k, Σ_j Δ_j⟩ of a tensor; None where `direction` has to compute them."""
        return self._directions.get(name)

    def move(self, weights: Sequence[float]) -> Iterator[tuple[str, Moved]]:
        """Compute tensors of the new model, w − g, and what they say about consensus, by name."""
        for place, plans in enumerate(self._stacked):
            stack = _Stack(plans, self._cohort, self._together, self._kept.pop(place, None))
            yield from _Average(stack, self._cohort, weights).moved()

    def _find_directions(self, room: int) -> None:
        directed = [
            (place, plans)
            for place, plans in enumerate(self._stacked)
            if any(plan.trainable for plan in plans)
        ]
        found = []
        for place, plans in directed:
            stack = _Stack(plans, self._cohort, self._together)
            if stack.size <= room:
                room -= stack.size
                self._kept[place] = stack.keep_updates()
            found.append(stack.products())
        for (_, plans), products in zip(directed, _to_host(found), strict=True):
            # Where float32 did not hold an update, `direction` takes it in float64.
            held = products.isfinite().all(dim=0).tolist()
            for plan, column, is_held in zip(plans, products.T.tolist(), held, strict=True):
                if plan.trainable and is_held:
                    self._directions[plan.name] = column


def _plan(name: str, start: Tensor, kind: TensorKind, cohort: Cohort, most: int) -> _Plan | None:
    """Say what has to be done to a tensor; None where `tensorwise` has to do it."""
    has_float64 = torch.device(cohort.device).type not in _WITHOUT_FLOAT64
    is_stacked = start.dtype in _DTYPES and 0 < start.numel() <= most - _BLOCK
    if kind is TensorKind.INTEGER or not (has_float64 and is_stacked):
        return None
    trainable = kind is TensorKind.TRAINABLE
    scored = cohort.is_scored(start, trainable=trainable)
    return _Plan(name, start, trainable, cohort.masked_counts(start), scored)


def _side_by_side(plans: Sequence[_Plan], most: int) -> Iterator[list[_Plan]]:
    """Put tensors of one dtype together, up to so many columns, or a larger one alone."""
    for dtype in _DTYPES:
        together: list[_Plan] = []
        for plan in plans:
            if plan.start.dtype != dtype:
                continue
            if together and sum(other.columns for other in together) + plan.columns > most:
                yield together
                together = []
            together.append(plan)
        if together:
            yield together


class _Stack:
    """Tensors of one dtype side by side, B blocks in all, and every client's update of them.

    Values on the device have the shape (rows, B, block): a row is a client's, or the aggregate.

    Parameters
    ----------
    plans : Sequence[_Plan]
        The T tensors.
    cohort : Cohort
        The participants.
    together : int
        How many numbers of all clients may be computed together.
    kept : list[Tensor] | None
        What `keep_updates` returned for these tensors; None forms the updates anew.
    """

    def __init__(
        self,
        plans: Sequence[_Plan],
        cohort: Cohort,
        together: int,
        kept: list[Tensor] | None = None,
    ) -> None:
        self.plans = plans
        self.device = torch.device(cohort.device)
        self.stored = plans[0].start.dtype
        self.dtype = working_dtype(self.stored)
        self._results = cohort.results
        self._kept = kept
        blocks = torch.tensor([plan.columns // _BLOCK for plan in plans])
        first_blocks = blocks.cumsum(0) - blocks
        self.begins: list[int] = (first_blocks * _BLOCK).tolist()
        self._columns = sum(plan.columns for plan in plans)
        clients, in_all = len(self._results), self._columns // _BLOCK
        self.size = clients * self._columns
        rows = min(clients, together // self._columns)
        self._chunks = [
            slice(first, min(first + rows, clients)) for first in range(0, clients, rows)
        ]
        row_begins = torch.arange(rows).unsqueeze(1) * in_all
        segments = [(row_begins + first_blocks).view(-1), torch.tensor([rows * in_all])]
        self._segments = self.upload(torch.cat(segments))
        self._owner = self.upload(torch.arange(len(plans)).repeat_interleave(blocks))
        within = torch.arange(in_all) - first_blocks.repeat_interleave(blocks)
        numbers = torch.arange(_BLOCK, dtype=torch.int32, device=self.device)
        self._ranks = self.upload(within.int()).unsqueeze(1) * _BLOCK + numbers
        entries = self.upload(torch.tensor([plan.entries for plan in plans], dtype=torch.int32))
        is_filling = self._ranks >= self.of_blocks(entries).unsqueeze(1)
        self._keys = 2 * self._owner.int().unsqueeze(1) + is_filling
        start = self.from_host((plan.start for plan in plans), self.stored)
        self.start = start.to(self.dtype)

    def upload(self, tensor: Tensor) -> Tensor:
        """Send a tensor to the device without waiting for its arrival."""
        pinned = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return pinned.to(self.device, non_blocking=True)

    def from_host(self, tensors: Iterable[Tensor | None], dtype: torch.dtype) -> Tensor:
        """Lay tensors side by side and send them, zeros where there is None: shape (B, block)."""
        return self.upload(self._row(tensors, dtype))

    def updates(self) -> Iterator[tuple[slice, Tensor]]:
        """Give the updates Δ_k = w − w_k, some clients at a time: whose they are, and they."""
        for place, chunk in enumerate(self._chunks):
            if self._kept is None:
                yield chunk, self._updates_of(self._results[chunk])
            else:
                yield chunk, self._kept[place]

    def keep_updates(self) -> list[Tensor]:
        """Keep the updates on the device, and return them."""
        self._kept = [updates for _, updates in self.updates()]
        return self._kept

    def products(self) -> Tensor:
        """Inner products ⟨Δ_k, Σ_j Δ_j⟩ of each tensor: shape (N, T), float64, on the device."""
        total = torch.zeros_like(self.start, dtype=torch.float64)
        for _, updates in self.updates():
            total += updates.sum(dim=0, dtype=torch.float64)
        if len(self._chunks) == 1:
            return self.sums(updates * total)
        return torch.cat([self.sums(updates * total) for _, updates in self.updates()])

    def _updates_of(self, results: Sequence[ClientResult]) -> Tensor:
        trained = self.start.new_empty((len(results), *self.start.shape), dtype=self.stored)
        for row, result in zip(trained, results, strict=True):
            tensors = (result.tensors[plan.name] for plan in self.plans)
            row.copy_(self._row(tensors, self.stored).view_as(row), non_blocking=True)
        in_place = trained if self.stored == self.dtype else None
        return torch.sub(self.start, trained, out=in_place)

    def _row(self, tensors: Iterable[Tensor | None], dtype: torch.dtype) -> Tensor:
        """Lay tensors side by side on the host, one at a time; zeros where there is None."""
        # The device fetches from pinned memory while the host goes on; PyTorch does not give it out
        # again before that.
        row = torch.empty(self._columns, dtype=dtype, pin_memory=self.device.type == "cuda")
        for plan, begin, tensor in zip(self.plans, self.begins, tensors, strict=True):
            filled = begin
            if tensor is not None:
                filled += plan.entries
                row[begin:filled].copy_(tensor.reshape(-1))
            row[filled : begin + plan.columns].zero_()
        return row.view(-1, _BLOCK)

    def of_blocks(self, values: Tensor) -> Tensor:
        """Give every block the number of its tensor: from shape (..., T) to (..., B)."""
        return values.index_select(-1, self._owner)

    def of_tensors(self, sums: Tensor) -> Tensor:
        """Add up the blocks of each tensor: from shape (rows, B) to (rows, T), float64."""
        rows = len(sums)
        segments = self._segments[: rows * len(self.plans) + 1]
        # Unsafe: its check of the offsets would make the host wait.
        added = torch.segment_reduce(sums.reshape(-1), "sum", offsets=segments, unsafe=True)
        return added.view(rows, -1)

    def sums(self, values: Tensor) -> Tensor:
        """Add up each row's entries of each tensor: shape (rows, T), float64."""
        return self.of_tensors(values.sum(dim=-1, dtype=torch.float64))

    def norms(self, values: Tensor) -> Tensor:
        """Euclidean norm of each row's part of each tensor: shape (rows, T), float64."""
        of_blocks = torch.linalg.vector_norm(values, dim=-1, dtype=torch.float64)
        return self.of_tensors(of_blocks.square()).sqrt()

    def smallest(self, values: Tensor, counts: Tensor) -> Tensor:
        """Choose in each row the entries of smallest value of each tensor, lower index first.

        Parameters
        ----------
        values : Tensor
            Shape (rows, B, block).
        counts : Tensor
            How many: shape (rows, T), on the device.

        Returns
        -------
        Tensor
            Which are chosen, bool, in the shape of `values`.
        """
        rows = torch.arange(len(values), dtype=torch.int32, device=self.device)
        keys = self._keys + 2 * len(self.plans) * rows.view(-1, 1, 1)
        # Sorted by value, then stably by row and tensor: each tensor's entries are where they were
        # before, in the order of their values, and behind them what fills up its last block.
        by_value = values.reshape(-1).sort(stable=True).indices
        by_key = keys.view(-1).index_select(0, by_value).sort(stable=True).indices
        order = by_value.index_select(0, by_key)
        is_among_first = self._ranks < self.of_blocks(counts).unsqueeze(-1)
        chosen = torch.empty_like(is_among_first)
        chosen.view(-1).scatter_(0, order, is_among_first.view(-1))
        return chosen


class _Average:
    """The weighted average of a stack's masked updates, and how much the clients agree.

    Parameters
    ----------
    stack : _Stack
        The tensors.
    cohort : Cohort
        The participants.
    weights : Sequence[float]
        λ_k.
    """

    def __init__(self, stack: _Stack, cohort: Cohort, weights: Sequence[float]) -> None:
        self._stack = stack
        self._cohort = cohort
        self._weights = stack.upload(torch.tensor(weights, dtype=stack.dtype))
        self._counts = torch.tensor([plan.counts for plan in stack.plans]).T
        self._masks = bool(self._counts.any())
        self._scored = any(plan.scored for plan in stack.plans)
        rate = cohort.avg_drop_rate
        sizes = [entry_count(plan.entries, rate) if plan.scored else 0 for plan in stack.plans]
        self._sizes = stack.upload(torch.tensor(sizes))
        self._change = torch.zeros_like(stack.start)
        self._total, self._squares = torch.zeros_like(stack.start), torch.zeros_like(stack.start)
        # Of each client and tensor: m_k and ‖Δ̃_k‖.
        self._discarded: list[Tensor] = []
        self._norms: list[Tensor] = []

    def moved(self) -> Iterator[tuple[str, Moved]]:
        """Return w − g of each tensor, and what the next round needs of its agreement."""
        for chunk, updates in self._stack.updates():
            self._add(chunk, updates)
        stack, change = self._stack, self._change
        ours = self._cohort.sent is None
        wanted = []
        if self._scored:
            members = self._consensus_sets()
            magnitudes = self._consensus_magnitudes(members)
            if ours:
                discarded = torch.cat(self._discarded).mean(dim=0)
                factors = factor_of_magnitudes(magnitudes, discarded).to(stack.dtype)
                change *= torch.where(members, stack.of_blocks(factors).unsqueeze(-1), 1.0)
                wanted = [factors]
            else:
                wanted = [magnitudes, torch.cat(self._norms), members]
        moved = saturated(torch.sub(stack.start, change, out=change), stack.stored)
        model, *found = _to_host([moved, *wanted])
        measured = self._measured(found)
        for plan, begin in zip(stack.plans, stack.begins, strict=True):
            entries = model.view(-1)[begin : begin + plan.entries]
            yield plan.name, (entries.clone().view(plan.start.shape), measured.get(plan.name))

    def _add(self, chunk: slice, updates: Tensor) -> None:
        """Take in some clients: g = Σ λ_k Δ̃_k, and sums of x_k = Δ̃_k / ‖Δ̃_k‖ and its square."""
        stack = self._stack
        if self._masks:
            magnitudes, counts = updates.abs(), stack.upload(self._counts[chunk])
            masked = stack.smallest(magnitudes, counts)
            sums = stack.sums(torch.where(masked, magnitudes, 0.0))
            self._discarded.append(sums / counts.clamp(min=1))
            updates.masked_fill_(masked, 0.0)
        self._change.view(-1).addmv_(updates.view(len(updates), -1).T, self._weights[chunk])
        if self._scored:
            norms = stack.norms(updates)
            self._norms.append(norms)
            inverse = torch.where(norms > 0, 1.0 / norms, 0.0)
            inverse = inverse.clamp_(max=torch.finfo(stack.dtype).max).to(stack.dtype)
            updates *= stack.of_blocks(inverse).unsqueeze(-1)
            self._total += updates.sum(dim=0)
            self._squares += updates.square_().sum(dim=0)

    def _consensus_sets(self) -> Tensor:
        """Choose C of every tensor: shape (B, block), bool. The sums over clients are used up."""
        score = consensus_score_(self._total, self._squares).neg_()
        return self._stack.smallest(score.unsqueeze(0), self._sizes.unsqueeze(0)).squeeze(0)

    def _consensus_magnitudes(self, members: Tensor) -> Tensor:
        """Return a = mean_{j∈C} |g_j| of every tensor, with the clients' f divided out of g."""
        stack, sent = self._stack, self._cohort.sent
        change = torch.where(members, self._change, 0.0)
        if sent is not None and sent.consensus is not None:
            change /= self._sent_scale(sent.consensus)
        return stack.sums(change.abs_().unsqueeze(0)).squeeze(0) / self._sizes.clamp(min=1)

    def _sent_scale(self, consensus: Consensus) -> Tensor:
        """Return what the clients multiplied each entry by: f on C, 1 elsewhere."""
        stack = self._stack
        factors = torch.tensor(
            [consensus.factors.get(plan.name, 1.0) for plan in stack.plans], dtype=stack.dtype
        )
        members = stack.from_host((consensus.members.get(p.name) for p in stack.plans), torch.bool)
        return torch.where(members, stack.of_blocks(stack.upload(factors)).unsqueeze(-1), 1.0)

    def _measured(self, found: Sequence[Tensor]) -> dict[str, Measured]:
        """Say what is known of each tensor's consensus, from what came back from the device."""
        plans, cohort = self._stack.plans, self._cohort
        if cohort.rates is None:
            return {}
        if cohort.sent is None:
            factors = found[0] if found else torch.ones(len(plans))
            return {
                plan.name: Measured(factor)
                for plan, factor in zip(plans, factors, strict=True)
                if plan.trainable
            }
        measured: dict[str, Measured] = {}
        if not found:
            return measured
        magnitudes, norms, members = found
        for place, (plan, begin) in enumerate(zip(plans, self._stack.begins, strict=True)):
            if plan.scored:
                discarded = [
                    discarded_magnitude(result, plan.name, norm, plan.entries)
                    for result, norm in zip(cohort.results, norms[:, place].tolist(), strict=True)
                ]
                mean = torch.tensor(sum(discarded) / len(discarded), dtype=torch.float64)
                factor = factor_of_magnitudes(magnitudes[place], mean).to(self._stack.dtype)
                inside = members.view(-1)[begin : begin + plan.entries].clone()
                measured[plan.name] = Measured(factor, inside)
        return measured


def _to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Fetch tensors from the device, waiting for them once."""
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    arriving = [tensor.to("cpu", non_blocking=tensor.is_cuda) for tensor in tensors]
    for device in devices:
        torch.cuda.current_stream(device).synchronize()
    return arriving
