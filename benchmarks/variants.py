"""FedPW otherwise: strategies that only comparisons need, one change each.

    fedpw strategy=fedpw strategy._target_=variants.FedPWVariant +strategy.variant=cosine

with PYTHONPATH=benchmarks; ``published.py`` does that. The equations are those of the package, of
which a variant replaces one while its own round is aggregated.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from memory_in_rounds import SignalAsItWas
from numpy.typing import NDArray
from torch import Tensor

from fedpw_flwr import FedPW
from fedpw_flwr.algorithm.bounds import bounded_weights, floored_losses
from fedpw_flwr.algorithm.client_step import ClientResult
from fedpw_flwr.algorithm.memory import ClientSignal, SignalState
from fedpw_flwr.algorithm.tensors import TensorKind, classify_tensors
from fedpw_flwr.wire.records import INITIAL_LOSS, REPORT_INITIAL_LOSS

# As the functions of one name hide some of these modules.
weights: Any = sys.modules["fedpw_flwr.algorithm.weights"]
server_step: Any = sys.modules["fedpw_flwr.algorithm.server_step"]
fedpw_method: Any = sys.modules["fedpw_flwr.strategy.fedpw_method"]

VARIANTS = ("visits", "examples", "cosine", "likelihood", "momentum", "initial_loss")

_active: ContextVar[str] = ContextVar("variant", default="")
_model: ContextVar[Mapping[str, Tensor]] = ContextVar("model")

update_signal: Callable[..., tuple[Tensor, float, SignalState]] = weights.update_signal
weigh: Callable[..., Any] = server_step.weigh
drop_rates: Callable[[Tensor, float], Tensor] = server_step.drop_rates
step: Callable[..., Any] = fedpw_method.server_step


class _Noting(FedPW):
    """FedPW that knows what the clients of a round were sent."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note the model, C and f."""
        self.before = arrays
        self.consensus = self.method.adjustment_state.consensus
        return super().configure_train(server_round, arrays, config, grid)

    def changes(self, arrays: ArrayRecord) -> dict[str, NDArray[np.float64]]:
        """Return by how far the round moved each trainable array, as a vector: −g."""
        kinds = classify_tensors(arrays.to_torch_state_dict(), None)
        return {
            name: (arrays[name].numpy() - self.before[name].numpy()).astype(np.float64).ravel()
            for name, kind in kinds.items()
            if kind is TensorKind.TRAINABLE
        }


class FedPWVariant(_Noting):
    """FedPW with one thing changed, see the functions below for what.

    `momentum`: v ← momentum · v − g, and the model moves by v. `initial_loss`: ℓ_k is the loss of
    the model that arrived, on all of a client's training data.
    """

    def __init__(
        self, *positional: Any, variant: str, momentum: float = 0.0, **options: Any
    ) -> None:
        if variant == "initial_loss":
            options["train_loss_key"] = INITIAL_LOSS
        super().__init__(*positional, **options)
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant!r}: choose {' or '.join(VARIANTS)}")
        self.variant, self.momentum = variant, momentum
        self.method.needs_examples |= variant == "examples"
        self.velocity: dict[str, NDArray[np.float64]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for the loss of the model that arrives, where the variant needs it."""
        if self.variant == "initial_loss":
            config = ConfigRecord({**config, REPORT_INITIAL_LOSS: True})
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate with the variant's equation."""
        token = _active.set(self.variant)
        try:
            arrays, metrics = super().aggregate_train(server_round, replies)
        finally:
            _active.reset(token)
        if arrays is not None and self.momentum:
            for name, change in self.changes(arrays).items():
                self.velocity[name] = self.momentum * self.velocity.get(name, 0.0) + change
                old = self.before[name].numpy()
                new = old + self.velocity[name].reshape(old.shape)
                arrays[name] = Array(new.astype(old.dtype))
        return arrays, metrics


def _signal_by_visits(
    state: SignalState,
    clients: Sequence[int],
    shares: Tensor,
    size: float,
    beta: float,
    first_round: bool,
) -> tuple[Tensor, float, SignalState]:
    """Move a signal by the earlier rule: a client's memory stands still while it is away."""
    if _active.get() != "visits":
        return update_signal(state, clients, shares, size, beta, first_round)
    before = {client: (one.share, one.momentum, one.mass) for client, one in state.clients.items()}
    brought = sum(before[client][0] if client in before else 1.0 for client in clients)
    signal = SignalAsItWas(before, state.first_size)
    after = signal.step(clients, shares.numpy(), size)
    known = {client: ClientSignal(*one, 0.0, 0.0) for client, one in signal.memory.items()}
    values = torch.tensor([after[client] / brought for client in clients], dtype=torch.float64)
    return values, brought, replace(state, clients=known, first_size=signal.first_size)


def _weigh(
    results: Sequence[ClientResult],
    losses: Tensor,
    directions: Callable[[], list[float]],
    *rest: Any,
) -> Any:
    """`cosine`: d_k / ‖Δ_k‖ in place of d_k. `examples`: λ_k times the number of examples."""
    if _active.get() == "cosine":
        norms = [_norm(result) for result in results]
        pairs = zip(directions(), norms, strict=True)
        found = [d / norm if norm > 0 else 0.0 for d, norm in pairs]
        return weigh(results, losses, lambda: found, *rest)
    decided, *memory = weigh(results, losses, directions, *rest)
    if _active.get() == "examples":
        _, settings = rest
        counted = [
            weight * float(result.num_examples or 0)
            for weight, result in zip(decided.unbounded, results, strict=True)
        ]
        prior = tuple(weight / sum(counted) for weight in counted)
        bounded = bounded_weights(prior, settings.max_weight)
        decided = replace(decided, weights=bounded, unbounded=prior)
    return decided, *memory


def _norm(result: ClientResult) -> float:
    model = _model.get()
    kinds = classify_tensors(model, None)
    squares = [
        float((model[name].double() - result.tensors[name].double()).square().sum())
        for name, kind in kinds.items()
        if kind is TensorKind.TRAINABLE
    ]
    return math.sqrt(sum(squares))


def _drop_rates(losses: Tensor, avg_drop_rate: float) -> Tensor:
    """`likelihood`: r_k by e^−ℓ_k, which is near an accuracy, in place of 1/ℓ_k."""
    if _active.get() != "likelihood":
        return drop_rates(losses, avg_drop_rate)
    right = torch.exp(-floored_losses(losses))
    return (avg_drop_rate * right / right.mean()).clamp(max=1.0)


def _step(model: Mapping[str, Tensor], *rest: Any, **options: Any) -> Any:
    token = _model.set(model)
    try:
        return step(model, *rest, **options)
    finally:
        _model.reset(token)


weights.update_signal = _signal_by_visits
server_step.weigh, server_step.drop_rates = _weigh, _drop_rates
fedpw_method.server_step = _step


class StepLength(_Noting):
    """FedPW with adjustment on the clients; prints how much longer amplification makes a step.

    That is ‖g amplified‖ / ‖g‖, where g is g amplified, divided by f on C.
    """

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate, and compare the step with what it would have been without f."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is not None:
            amplified = plain = 0.0
            for name, change in self.changes(arrays).items():
                amplified += float(change @ change)
                if self.consensus is not None and name in self.consensus.factors:
                    change[self.consensus.members[name].numpy()] /= self.consensus.factors[name]
                plain += float(change @ change)
            print(f"step length, round {server_round}: {(amplified / plain) ** 0.5:.5f}")
        return arrays, metrics
