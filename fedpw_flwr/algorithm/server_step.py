"""One FedPW server step over a whole model: N trained models in, the next global model out.

The step walks over the model twice, one tensor at a time: once for the directions that decide the
weights, once to mask, average, score and amplify. Clients' tensors are asked for by name when they
are needed, so a caller may decode them lazily; beside them and the new model the step holds a few
tensors of the size of the largest one, however many clients there are.

Where the clients adjust their own updates, the same step averages what they sent and measures the
consensus for the next round instead of amplifying.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fedpw_flwr.algorithm.adjustment import (
    amplification_factor,
    amplify_,
    consensus_score_,
    consensus_set,
    drop_rates,
    entry_count,
    mask_smallest_,
    unit_normalise_,
)
from fedpw_flwr.algorithm.client_step import (
    AdjustedTensors,
    AppliedAdjustment,
    Consensus,
    SentAdjustment,
    is_adjustable,
)
from fedpw_flwr.algorithm.direction import (
    add_tensor_directions,
    direction_shares,
    direction_size,
)
from fedpw_flwr.algorithm.settings import FedPWSettings
from fedpw_flwr.algorithm.tensors import TensorKind, classify_tensors, saturated, working_dtype
from fedpw_flwr.algorithm.weighting import (
    WeightingState,
    clip_negative_weights,
    loss_shares,
    loss_size,
    mix_terms,
    update_signal,
)

__all__ = ["ClientResult", "RoundWeights", "ServerStep", "server_step"]


CLIPPED = 0.99
"""An update that comes with less than this share of its reported norm was clipped on the way."""

ROUNDING = 1.01
"""What rounding may add to a magnitude before it is called too large."""


@dataclass(frozen=True)
class ClientResult:
    """What one client brings to a round.

    Attributes
    ----------
    client : int
        Stable identity of the client.
    tensors : Mapping[str, Tensor]
        w_k, the client's model after training; may decode on access.
    loss : float | None
        ℓ_k, mean training loss over all local batches. Needed unless both parts of the method are
        switched off.
    num_examples : float | None
        Number of training examples; only used where `adapt_weights` is off.
    applied : AppliedAdjustment | None
        What the client did to its update before sending; None where w_k is as trained.
    """

    client: int
    tensors: Mapping[str, Tensor]
    loss: float | None = None
    num_examples: float | None = None
    applied: AppliedAdjustment | None = None


@dataclass(frozen=True)
class RoundWeights:
    """Aggregation weights of a round and where they come from; lists run over the clients.

    Attributes
    ----------
    weights : tuple[float, ...]
        λ_k, summing to 1.
    direction_term, loss_term : tuple[float, ...] | None
        Shares p_k and q_k; None where weights are not adapted.
    loss_term_share : float | None
        σ_q / (σ_p + σ_q); None where weights are not adapted.
    """

    weights: tuple[float, ...]
    direction_term: tuple[float, ...] | None = None
    loss_term: tuple[float, ...] | None = None
    loss_term_share: float | None = None


@dataclass(frozen=True)
class ServerStep:
    """Result of a server step; lists run over the clients in the order of their identity.

    Attributes
    ----------
    model : dict[str, Tensor]
        The new global model, in the order, shapes and dtypes of the old one, on the CPU.
    state : WeightingState
        The method's memory after the round.
    clients : tuple[int, ...]
        The participants, ascending.
    weights : RoundWeights
        Aggregation weights and their terms.
    drop_rates : tuple[float, ...] | None
        r_k with which updates were masked; None where nothing was (the first round, or Parameter
        Adjustment switched off).
    amplification : dict[str, float]
        f of every trainable tensor, applied by the server or by the clients; empty where nothing
        was adjusted.
    consensus : Consensus | None
        What the clients rescale with from now on; None where the server adjusts, or nothing was
        masked yet.
    """

    model: dict[str, Tensor]
    state: WeightingState
    clients: tuple[int, ...]
    weights: RoundWeights
    drop_rates: tuple[float, ...] | None
    amplification: dict[str, float]
    consensus: Consensus | None = None


def server_step(
    global_model: Mapping[str, Tensor],
    results: Sequence[ClientResult],
    state: WeightingState,
    settings: FedPWSettings,
    device: torch.device | str = "cpu",
    sent: SentAdjustment | None = None,
) -> ServerStep:
    """Aggregate one round: weights by AWA, then masking, averaging and amplification by PA.

    Nothing is modified: neither the inputs nor `state`, which comes back moved by one round.

    Parameters
    ----------
    global_model : Mapping[str, Tensor]
        w, the model the clients started from.
    results : Sequence[ClientResult]
        One entry a participant, in any order; every number in them finite.
    state : WeightingState
        The method's memory before the round (``WeightingState()`` before the first).
    settings : FedPWSettings
        The hyper-parameters.
    device : torch.device | str (default: "cpu")
        Where the arithmetic runs.
    sent : SentAdjustment | None (default: None)
        What the clients were asked to do to their updates. Results without `applied` are brought
        into the same form first; g is then applied as it is. None: the server adjusts.

    Returns
    -------
    ServerStep
        The new model w − g, the new state, and what was decided on the way.

    Raises
    ------
    ValueError
        If there is no result, a client appears twice, a loss is missing where it is needed, or a
        client did something else to its update than it was asked to.
    """
    ordered = _in_order(results)
    kinds = classify_tensors(
        {name: tensor.dtype for name, tensor in global_model.items()}, settings.trainable
    )
    losses = _losses(ordered, settings)
    rates: tuple[float, ...] | None = None
    if settings.adjust_parameters:
        if sent is not None:
            ordered = [_in_sent_form(result, sent, global_model, device) for result in ordered]
            if sent.rates is not None:
                rates = tuple(sent.rates[result.client] for result in ordered)
        elif state.rounds > 0:
            rates = tuple(drop_rates(losses, settings.avg_drop_rate).tolist())
    weights, next_state = _weigh(global_model, ordered, losses, kinds, state, settings, device)

    cohort = _Cohort(ordered, weights.weights, rates, sent, settings.avg_drop_rate, device)
    model: dict[str, Tensor] = {}
    measured: dict[str, _Measured] = {}
    with torch.no_grad():
        for name, tensor in global_model.items():
            model[name], found = _move_tensor(name, tensor, kinds[name], cohort)
            if found is not None:
                measured[name] = found

    amplification = {name: float(found.factor) for name, found in measured.items()}
    consensus = None
    if sent is not None and rates is not None:
        members = {
            name: found.members.cpu()
            for name, found in measured.items()
            if found.members is not None and amplification[name] > 1.0
        }
        consensus = Consensus(
            round=next_state.rounds,
            members=members,
            factors={name: amplification[name] for name in members},
        )
        applied = {} if sent.consensus is None else sent.consensus.factors
        trainable = [name for name, kind in kinds.items() if kind is TensorKind.TRAINABLE]
        amplification = {name: applied.get(name, 1.0) for name in trainable}
    return ServerStep(
        model=model,
        state=next_state,
        clients=tuple(result.client for result in ordered),
        weights=weights,
        drop_rates=rates,
        amplification=amplification,
        consensus=consensus,
    )


@dataclass(frozen=True, eq=False)
class _Cohort:
    """The participants of a round, with what was decided for all tensors alike."""

    results: Sequence[ClientResult]
    weights: Sequence[float]
    rates: Sequence[float] | None
    sent: SentAdjustment | None
    avg_drop_rate: float
    device: torch.device | str


@dataclass(frozen=True, eq=False)
class _Measured:
    """Factor f (0-d) of one tensor; its C (bool, shape (n,)) where the clients will need it."""

    factor: Tensor
    members: Tensor | None = None


def _move_tensor(
    name: str, tensor: Tensor, kind: TensorKind, cohort: _Cohort
) -> tuple[Tensor, _Measured | None]:
    """Compute one tensor of the new model, w − g, and what it says about consensus."""
    if tensor.numel() == 0:
        return tensor.cpu(), None
    trained, weights = _LazyTensors(cohort.results, name), cohort.weights
    if kind is TensorKind.INTEGER:
        return _weighted_integers(tensor, trained, weights), None
    start = tensor.reshape(-1).to(cohort.device, working_dtype(tensor.dtype))
    measured = None
    consensus_rate = cohort.avg_drop_rate if kind is TensorKind.TRAINABLE else None
    if cohort.rates is None:
        change = _average(start, trained, weights)
    elif cohort.sent is None:
        change, measured = _average_adjusted(start, trained, weights, cohort.rates, consensus_rate)
    elif consensus_rate is not None and is_adjustable(tensor):
        change, measured = _average_and_measure(
            start,
            trained,
            weights,
            cohort.rates,
            consensus_rate,
            lambda norms: [
                _discarded_magnitude(result, name, norm, tensor.numel())
                for result, norm in zip(cohort.results, norms, strict=True)
            ],
            _sent_scale(cohort.sent.consensus, name, start),
        )
    else:
        change = _average(start, trained, weights)
    moved = torch.sub(start, change, out=change)
    return saturated(moved, tensor.dtype).reshape(tensor.shape).cpu(), measured


class _LazyTensors(Sequence[Tensor]):
    """One tensor of every client, decoded each time it is asked for and never kept."""

    def __init__(self, results: Sequence[ClientResult], name: str) -> None:
        self._results = results
        self._name = name

    def __getitem__(self, place: Any) -> Any:
        return self._results[place].tensors[self._name]

    def __len__(self) -> int:
        return len(self._results)


def _in_sent_form(
    result: ClientResult,
    sent: SentAdjustment,
    global_model: Mapping[str, Tensor],
    device: torch.device | str,
) -> ClientResult:
    """Adjust a result that came unadjusted; check that another was adjusted as it was asked."""
    rate = None if sent.rates is None else sent.rates[result.client]
    asked_round = None if sent.consensus is None else sent.consensus.round
    if result.applied is not None:
        done = (result.applied.rate, result.applied.consensus_round)
        if done != (rate or 0.0, asked_round):
            raise ValueError(
                f"client {result.client} masked with the rate {done[0]} and the consensus of round "
                f"{done[1]}; it was sent {rate} and {asked_round}"
            )
        return result
    if rate is None:
        return result
    adjusted = AdjustedTensors(global_model, result.tensors, rate, sent.consensus, device)
    return replace(result, tensors=adjusted)


def _discarded_magnitude(result: ClientResult, name: str, norm: float, entries: int) -> float:
    """Return m_k of one tensor in the scale of the update as it came, whose norm is given.

    A client reports m_k of the update before a clipping mod scaled it, and may report anything. No
    masked entry is larger than one that was kept, so m_k is at most their root mean square.
    """
    if isinstance(result.tensors, AdjustedTensors):
        return result.tensors.discarded_magnitude(name)
    if result.applied is None:
        return 0.0
    reported = result.applied.discarded[name]
    norm_before = result.applied.norms.get(name, norm)
    if norm < CLIPPED * norm_before:
        reported *= norm / norm_before
    kept = entries - entry_count(entries, result.applied.rate)
    if kept == 0:
        return reported
    most = ROUNDING * norm / math.sqrt(kept)
    return min(reported, most)


def _sent_scale(consensus: Consensus | None, name: str, start: Tensor) -> Tensor | None:
    """Return what the clients multiplied each entry by: f on C, 1 elsewhere."""
    if consensus is None or name not in consensus.members:
        return None
    factor = torch.tensor(consensus.factors[name], dtype=start.dtype, device=start.device)
    return torch.where(consensus.members[name].to(start.device), factor, 1.0)


def _in_order(results: Sequence[ClientResult]) -> list[ClientResult]:
    """Sort by identity: float sums then do not depend on the order of arrival."""
    if not results:
        raise ValueError("a server step needs at least one client's result")
    ordered = sorted(results, key=lambda result: result.client)
    for first, second in pairwise(ordered):
        if first.client == second.client:
            raise ValueError(f"client {first.client} appears twice in one round")
    return ordered


def _losses(results: Sequence[ClientResult], settings: FedPWSettings) -> Tensor:
    if not (settings.adapt_weights or settings.adjust_parameters):
        return torch.zeros(len(results), dtype=torch.float64)
    values = []
    for result in results:
        if result.loss is None or not 0.0 <= result.loss < float("inf"):
            raise ValueError(
                f"client {result.client} has the loss {result.loss}; FedPW needs a finite, "
                "non-negative mean training loss of every participant"
            )
        values.append(result.loss)
    return torch.tensor(values, dtype=torch.float64)


def _weigh(
    global_model: Mapping[str, Tensor],
    results: Sequence[ClientResult],
    losses: Tensor,
    kinds: Mapping[str, TensorKind],
    state: WeightingState,
    settings: FedPWSettings,
    device: torch.device | str,
) -> tuple[RoundWeights, WeightingState]:
    """Adaptive Weighted Aggregation, or weights by number of examples where it is off."""
    rounds = state.rounds + 1
    if not settings.adapt_weights:
        return RoundWeights(_weights_by_examples(results)), replace(state, rounds=rounds)

    directions = torch.tensor(
        _directions(global_model, results, kinds, device), dtype=torch.float64
    )
    clients = [result.client for result in results]
    first_round = state.rounds == 0
    direction_term, direction_state = update_signal(
        state.direction,
        clients,
        direction_shares(directions),
        direction_size(directions),
        settings.beta,
        first_round,
    )
    loss_term, loss_state = update_signal(
        state.loss, clients, loss_shares(losses), loss_size(losses), settings.beta, first_round
    )
    mixed = mix_terms(direction_term, loss_term)
    weights = clip_negative_weights(mixed.weights) if settings.clip_weights else mixed.weights
    return (
        RoundWeights(
            weights=tuple(weights.tolist()),
            direction_term=tuple(direction_term.tolist()),
            loss_term=tuple(loss_term.tolist()),
            loss_term_share=mixed.loss_term_share,
        ),
        WeightingState(rounds=rounds, direction=direction_state, loss=loss_state),
    )


def _directions(
    global_model: Mapping[str, Tensor],
    results: Sequence[ClientResult],
    kinds: Mapping[str, TensorKind],
    device: torch.device | str,
) -> list[float]:
    directions = [0.0] * len(results)
    with torch.no_grad():
        for name, tensor in global_model.items():
            if kinds[name] is TensorKind.TRAINABLE and tensor.numel() > 0:
                add_tensor_directions(
                    directions,
                    tensor.to(device),
                    _LazyTensors(results, name),
                )
    return directions


def _weights_by_examples(results: Sequence[ClientResult]) -> tuple[float, ...]:
    """Weight by number of examples; equally where no result has one or all are zero."""
    counts = [result.num_examples for result in results]
    known = [count for count in counts if count is not None]
    if known and len(known) < len(counts):
        missing = [result.client for result in results if result.num_examples is None]
        raise ValueError(
            f"clients {missing} report no number of examples while others do: every client must "
            "report it, or none"
        )
    total = sum(known)
    if total <= 0:
        return tuple(1.0 / len(counts) for _ in counts)
    return tuple(count / total for count in known)


def _average(start: Tensor, trained: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Aggregate g = Σ λ_k Δ_k of one tensor."""
    change = torch.zeros_like(start)
    update = torch.empty_like(start)
    for tensor, weight in zip(trained, weights, strict=True):
        change.add_(_update_into(update, start, tensor), alpha=weight)
    return change


def _average_adjusted(
    start: Tensor,
    trained: Sequence[Tensor],
    weights: Sequence[float],
    rates: Sequence[float],
    consensus_rate: float | None,
) -> tuple[Tensor, _Measured | None]:
    """Mask each Δ_k, aggregate g = Σ λ_k Δ̃_k, and amplify g where the clients agree.

    `consensus_rate` is r̄, or None for a tensor without consensus (a buffer). Returns g and f.
    """
    entries = start.numel()
    counts = [entry_count(entries, rate) for rate in rates]
    agreement = _Agreement(start) if consensus_rate is not None and all(counts) else None

    change = torch.zeros_like(start)
    update, scratch = torch.empty_like(start), torch.empty_like(start)
    discarded = start.new_zeros(())
    for tensor, weight, count in zip(trained, weights, counts, strict=True):
        _update_into(update, start, tensor)
        discarded = discarded + mask_smallest_(update, count, scratch)
        change.add_(update, alpha=weight)
        if agreement is not None:
            agreement.add_(update)

    if consensus_rate is None:
        return change, None
    if agreement is None:
        return change, _Measured(start.new_ones(()))
    size = entry_count(entries, consensus_rate)
    members = agreement.consensus_set(size, scratch)
    factor = amplification_factor(change, members, size, discarded / len(trained))
    return amplify_(change, members, factor), _Measured(factor)


def _average_and_measure(
    start: Tensor,
    trained: Sequence[Tensor],
    weights: Sequence[float],
    rates: Sequence[float],
    consensus_rate: float,
    discarded: Callable[[Sequence[float]], Sequence[float]],
    sent_scale: Tensor | None,
) -> tuple[Tensor, _Measured | None]:
    """Aggregate g = Σ λ_k Δ̃_k of updates that are adjusted, and measure the next C and f.

    For f alone the factor that the clients multiplied by (`sent_scale`) is divided out of g, else
    f would feed on itself. Returns g, and C with f where every client masked an entry.
    """
    entries = start.numel()
    if not all(entry_count(entries, rate) for rate in rates):
        return _average(start, trained, weights), None
    agreement = _Agreement(start)
    change = torch.zeros_like(start)
    update = torch.empty_like(start)
    norms = []
    for tensor, weight in zip(trained, weights, strict=True):
        change.add_(_update_into(update, start, tensor), alpha=weight)
        norms.append(agreement.add_(update))
    size = entry_count(entries, consensus_rate)
    members = agreement.consensus_set(size, update)
    unscaled = change if sent_scale is None else torch.div(change, sent_scale, out=update)
    # Asked for last: an update that the server adjusted has its m_k only now.
    magnitudes = discarded(torch.stack(norms).tolist())
    mean_discarded = start.new_tensor(sum(magnitudes) / len(trained))
    factor = amplification_factor(unscaled, members, size, mean_discarded)
    return change, _Measured(factor, members)


class _Agreement:
    """Running sums over the clients of the unit-normalised updates x_k of one tensor."""

    def __init__(self, like: Tensor) -> None:
        self._total = torch.zeros_like(like)
        self._squares = torch.zeros_like(like)

    def add_(self, update: Tensor) -> Tensor:
        """Add x_k = Δ̃_k / ‖Δ̃_k‖ and return the norm, 0-d; `update` is overwritten."""
        norm: Tensor = torch.linalg.vector_norm(update)
        unit_normalise_(update, norm)
        self._total.add_(update)
        self._squares.addcmul_(update, update)
        return norm

    def consensus_set(self, size: int, scratch: Tensor) -> Tensor:
        """Return membership of C, bool; the sums and `scratch` are overwritten."""
        return consensus_set(consensus_score_(self._total, self._squares), size, scratch)


def _update_into(update: Tensor, start: Tensor, trained: Tensor) -> Tensor:
    """Write Δ_k = w − w_k into `update`."""
    return torch.sub(start, trained.reshape(-1).to(start.device, start.dtype), out=update)


def _weighted_integers(
    start: Tensor, trained: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    """Weighted mean of counters, rounded to nearest; on the CPU, where every device has float64."""
    mean = torch.zeros(start.shape, dtype=torch.float64)
    for tensor, weight in zip(trained, weights, strict=True):
        mean.add_(tensor.to("cpu", torch.float64), alpha=weight)
    return mean.round_().to(start.dtype)
