"""One FedPW server step over a whole model: N trained models in, the next global model out.

An engine walks over the model twice: once for the directions that decide the weights, once to mask,
average, score and amplify. Beside the new model the step holds a few tensors of the size of the
largest one, however many clients there are.

Where the clients adjust their own updates, the same step averages what they sent and measures the
consensus for the next round instead of amplifying.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from fedpw_flwr.algorithm.adjustment import drop_rates, keep_nonnegative_
from fedpw_flwr.algorithm.bounds import bounded_losses
from fedpw_flwr.algorithm.client_step import (
    AdjustedTensors,
    ClientResult,
    Consensus,
    SentAdjustment,
)
from fedpw_flwr.algorithm.memory import WeightingState
from fedpw_flwr.algorithm.reference import Cohort, LazyTensors, Measured, Reference, StartEngine
from fedpw_flwr.algorithm.settings import FedPWSettings
from fedpw_flwr.algorithm.tensors import TensorKind, classify_tensors
from fedpw_flwr.algorithm.weights import RoundWeights, weigh


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
    losses : tuple[float, ...]
        ℓ_k as they counted, within `max_loss_ratio`; zeros where no loss is needed.
    relative_losses : tuple[float, ...] | None
        u_k, the same in a form that compares with other rounds; None where no loss is needed.
    bounded : tuple[int, ...]
        Clients whose loss or weight was brought within its bound.
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
    losses: tuple[float, ...]
    relative_losses: tuple[float, ...] | None
    bounded: tuple[int, ...]
    drop_rates: tuple[float, ...] | None
    amplification: dict[str, float]
    consensus: Consensus | None = None


def server_step(
    global_model: Mapping[str, Tensor],
    results: Sequence[ClientResult],
    state: WeightingState,
    settings: FedPWSettings,
    *,
    engine: StartEngine = Reference,
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
    engine : StartEngine (default: Reference)
        What computes the tensors.
    sent : SentAdjustment | None (default: None)
        What the clients were asked to do to their updates, and did where a result has `applied`;
        the others are brought into the same form first. g is then applied as it is. None: the
        server adjusts.

    Returns
    -------
    ServerStep
        The new model w − g, the new state, and what was decided on the way.

    Raises
    ------
    ValueError
        If there is no result, a client appears twice, or a loss is missing where it is needed.
    """
    # Who takes part, and with which losses.
    ordered = _in_order(results)
    reported = _losses(ordered, settings)
    losses = bounded_losses(reported, settings.max_loss_ratio)

    # What is masked, and by whom.
    rates: tuple[float, ...] | None = None
    if settings.adjust_parameters and sent is not None:
        ordered = [
            _in_sent_form(result, sent, global_model, keep_sign=settings.clip_weights)
            for result in ordered
        ]
        if sent.rates is not None:
            rates = tuple(sent.rates[result.client] for result in ordered)
    elif settings.adjust_parameters and state.rounds > 0:
        rates = tuple(drop_rates(losses, settings.avg_drop_rate).tolist())
    kinds = classify_tensors(global_model, settings.trainable)
    cohort = Cohort(ordered, rates, sent, settings.avg_drop_rate)

    # The weights, and with them the new model.
    with torch.no_grad():
        tensors = engine(global_model, kinds, cohort)
        weights, next_state, relative = weigh(ordered, losses, tensors.directions, state, settings)
        moved = tensors.move(weights.weights)
        guarded = settings.clip_weights
        model, measured = _moved(moved, global_model, kinds, cohort, guarded=guarded)

    # What was amplified, and what the clients will rescale with.
    amplification: dict[str, float] = {}
    consensus = None
    if rates is not None:
        factors: Mapping[str, float]
        factors = {name: float(found.factor) for name, found in measured.items()}
        if sent is not None:
            consensus = _next_consensus(next_state.rounds, measured, factors)
            factors = {} if sent.consensus is None else sent.consensus.factors
        trainable = [name for name, kind in kinds.items() if kind is TensorKind.TRAINABLE]
        amplification = {name: factors.get(name, 1.0) for name in trainable}
    clients = tuple(result.client for result in ordered)
    within = (losses == reported).tolist()
    each = zip(clients, within, weights.weights, weights.unbounded, strict=True)
    return ServerStep(
        model=model,
        state=next_state,
        clients=clients,
        weights=weights,
        losses=tuple(losses.tolist()),
        relative_losses=relative,
        bounded=tuple(client for client, same, now, before in each if not same or now < before),
        drop_rates=rates,
        amplification=amplification,
        consensus=consensus,
    )


def _moved(
    moved: Iterable[tuple[str, Tensor, Measured | None]],
    global_model: Mapping[str, Tensor],
    kinds: Mapping[str, TensorKind],
    cohort: Cohort,
    *,
    guarded: bool,
) -> tuple[dict[str, Tensor], dict[str, Measured]]:
    """Collect the new model, `guarded` against negative entries, and what the clients agree on."""
    model: dict[str, Tensor] = {}
    measured: dict[str, Measured] = {}
    for name, tensor, found in moved:
        if guarded and kinds[name] is not TensorKind.INTEGER:
            members, factor = None, 1.0
            if found is not None and cohort.sent is None:
                members, factor = found.members, float(found.factor)
            trained = LazyTensors(cohort.results, name)
            keep_nonnegative_(tensor, global_model[name], trained, members, factor)
        model[name] = tensor
        if found is not None:
            # C is of the size of the tensor: held only where the clients will need it.
            measured[name] = found if cohort.sent is not None else replace(found, members=None)
    return model, measured


def _next_consensus(
    round_number: int, measured: Mapping[str, Measured], factors: Mapping[str, float]
) -> Consensus:
    """Collect C and f of the tensors that the clients are to rescale."""
    members = {
        name: found.members.cpu()
        for name, found in measured.items()
        if found.members is not None and factors[name] > 1.0
    }
    return Consensus(round_number, members, {name: factors[name] for name in members})


def _in_sent_form(
    result: ClientResult,
    sent: SentAdjustment,
    global_model: Mapping[str, Tensor],
    *,
    keep_sign: bool,
) -> ClientResult:
    """Adjust a result that came unadjusted as the client was asked to."""
    rate = None if sent.rates is None else sent.rates[result.client]
    if result.applied is not None or rate is None:
        return result
    adjusted = AdjustedTensors(
        global_model, result.tensors, rate, sent.consensus, keep_sign=keep_sign
    )
    return replace(result, tensors=adjusted)


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
