"""One FedPW server step over a whole model: N trained models in, the next global model out.

The step walks over the model twice, one tensor at a time: once for the directions that decide the
weights, once to mask, average, score and amplify. Clients' tensors are asked for by name when they
are needed, so a caller may decode them lazily; beside them and the new model the step holds five
tensors of the size of the largest one, however many clients there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

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
from fedpw_flwr.algorithm.direction import (
    add_tensor_directions,
    direction_shares,
    direction_size,
)
from fedpw_flwr.algorithm.settings import FedPWSettings
from fedpw_flwr.algorithm.tensors import TensorKind, classify_tensors, working_dtype
from fedpw_flwr.algorithm.weighting import (
    WeightingState,
    clip_negative_weights,
    loss_shares,
    loss_size,
    mix_terms,
    update_signal,
)

__all__ = ["ClientResult", "RoundWeights", "ServerStep", "server_step"]


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
    """

    client: int
    tensors: Mapping[str, Tensor]
    loss: float | None = None
    num_examples: float | None = None


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
        f of every trainable tensor; empty where nothing was adjusted.
    """

    model: dict[str, Tensor]
    state: WeightingState
    clients: tuple[int, ...]
    weights: RoundWeights
    drop_rates: tuple[float, ...] | None
    amplification: dict[str, float]


def server_step(
    global_model: Mapping[str, Tensor],
    results: Sequence[ClientResult],
    state: WeightingState,
    settings: FedPWSettings,
    device: torch.device | str = "cpu",
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

    Returns
    -------
    ServerStep
        The new model w − g, the new state, and what was decided on the way.

    Raises
    ------
    ValueError
        If there is no result, a client appears twice, or a loss is missing where it is needed.
    """
    ordered = _in_order(results)
    kinds = classify_tensors(
        {name: tensor.dtype for name, tensor in global_model.items()}, settings.trainable
    )
    losses = _losses(ordered, settings)
    weights, next_state = _weigh(global_model, ordered, losses, kinds, state, settings, device)

    rates: tuple[float, ...] | None = None
    if settings.adjust_parameters and state.rounds > 0:
        rates = tuple(drop_rates(losses, settings.avg_drop_rate).tolist())

    model: dict[str, Tensor] = {}
    factors: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, tensor in global_model.items():
            if tensor.numel() == 0:
                model[name] = tensor.cpu()
                continue
            moved, factor = _move_tensor(
                tensor,
                [result.tensors[name] for result in ordered],
                kinds[name],
                weights.weights,
                rates,
                settings.avg_drop_rate,
                device,
            )
            model[name] = moved.cpu()
            if factor is not None:
                factors[name] = factor

    return ServerStep(
        model=model,
        state=next_state,
        clients=tuple(result.client for result in ordered),
        weights=weights,
        drop_rates=rates,
        amplification={name: float(factor) for name, factor in factors.items()},
    )


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
                    [result.tensors[name] for result in results],
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


def _move_tensor(
    tensor: Tensor,
    trained: Sequence[Tensor],
    kind: TensorKind,
    weights: Sequence[float],
    rates: Sequence[float] | None,
    avg_drop_rate: float,
    device: torch.device | str,
) -> tuple[Tensor, Tensor | None]:
    """Compute one tensor of the new model, w − g, and its amplification f where it has one."""
    if kind is TensorKind.INTEGER:
        return _weighted_integers(tensor, trained, weights), None
    start = tensor.reshape(-1).to(device, working_dtype(tensor.dtype))
    factor = None
    if rates is None:
        change = _average(start, trained, weights)
    else:
        consensus_rate = avg_drop_rate if kind is TensorKind.TRAINABLE else None
        change, factor = _average_adjusted(start, trained, weights, rates, consensus_rate)
    moved = torch.sub(start, change, out=change)
    return _saturated(moved, tensor.dtype).reshape(tensor.shape), factor


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
) -> tuple[Tensor, Tensor | None]:
    """Mask each Δ_k, aggregate g = Σ λ_k Δ̃_k, and amplify g where the clients agree.

    `consensus_rate` is r̄, or None for a tensor without consensus (a buffer). Returns g and f.
    """
    entries = start.numel()
    counts = [entry_count(entries, rate) for rate in rates]
    amplifies = consensus_rate is not None and all(counts)

    change = torch.zeros_like(start)
    update, scratch = torch.empty_like(start), torch.empty_like(start)
    total = torch.zeros_like(start) if amplifies else None
    squares = torch.zeros_like(start) if amplifies else None
    discarded = start.new_zeros(())
    for tensor, weight, count in zip(trained, weights, counts, strict=True):
        _update_into(update, start, tensor)
        discarded = discarded + mask_smallest_(update, count, scratch)
        change.add_(update, alpha=weight)
        if total is not None and squares is not None:
            unit_normalise_(update)
            total.add_(update)
            squares.addcmul_(update, update)

    if consensus_rate is None:
        return change, None
    if total is None or squares is None:
        return change, start.new_ones(())
    size = entry_count(entries, consensus_rate)
    members = consensus_set(consensus_score_(total, squares), size, scratch)
    factor = amplification_factor(change, members, size, discarded / len(trained))
    return amplify_(change, members, factor), factor


def _update_into(update: Tensor, start: Tensor, trained: Tensor) -> Tensor:
    """Write Δ_k = w − w_k into `update`."""
    return torch.sub(start, trained.reshape(-1).to(start.device, start.dtype), out=update)


def _saturated(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to `dtype`; what a half-precision dtype cannot hold becomes its largest value."""
    if dtype == values.dtype:
        return values
    limit = torch.finfo(dtype).max
    return values.clamp_(-limit, limit).to(dtype)


def _weighted_integers(
    start: Tensor, trained: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    """Weighted mean of counters, rounded to nearest; on the CPU, where every device has float64."""
    mean = torch.zeros(start.shape, dtype=torch.float64)
    for tensor, weight in zip(trained, weights, strict=True):
        mean.add_(tensor.to("cpu", torch.float64), alpha=weight)
    return mean.round_().to(start.dtype)
