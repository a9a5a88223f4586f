"""Rounds written as updates, and what honest clients send that adjust their own.

ALGORITHM.md speaks of updates Δ_k = w − w_k, the server step receives models w_k. Writing the
updates keeps the hand computations in the tests next to the numbers they start from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedpw_flwr.algorithm import AppliedAdjustment, ClientResult, SentAdjustment
from fedpw_flwr.algorithm.client_step import adjust_tensor, is_adjustable, subtract_update


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def a_round(
    model: Mapping[str, Tensor],
    updates: Mapping[int, Mapping[str, Tensor] | Sequence[float]],
    losses: Mapping[int, float | None] | float | None = 1.0,
    examples: Mapping[int, float | None] | None = None,
) -> list[ClientResult]:
    """A round's results from w, Δ_k and ℓ_k; a plain list is an update of the tensor "weight"."""
    results = []
    for client, update in updates.items():
        if not isinstance(update, Mapping):
            weight = model["weight"]
            update = {"weight": torch.tensor(update, dtype=weight.dtype).reshape(weight.shape)}
        trained = {name: start - update[name] for name, start in model.items()}
        loss = losses[client] if isinstance(losses, Mapping) else losses
        count = None if examples is None else examples[client]
        results.append(ClientResult(client, trained, loss, count))
    return results


def drawn_results(
    model: Mapping[str, Tensor], clients: Sequence[int], generator: torch.Generator, size: float
) -> list[ClientResult]:
    """Clients whose updates are alike in part; a counter moves by the client's number and 1."""
    shared = {name: torch.randn(start.shape, generator=generator) for name, start in model.items()}

    def trained(name: str, start: Tensor, client: int) -> Tensor:
        if not start.is_floating_point():
            return start + client + 1
        own = torch.randn(start.shape, generator=generator)
        return (start - size * (shared[name] + own)).to(start.dtype)

    return [
        ClientResult(
            client,
            {name: trained(name, start, client) for name, start in model.items()},
            loss=0.1 + 2 * float(torch.rand((), generator=generator)),
            num_examples=10.0 + client,
        )
        for client in clients
    ]


def carried_out(
    model: Mapping[str, Tensor], results: Sequence[ClientResult], sent: SentAdjustment
) -> list[ClientResult]:
    """The results as their clients send them once they have done what they were asked to."""
    members = {} if sent.consensus is None else sent.consensus.members
    factors = {} if sent.consensus is None else sent.consensus.factors
    adjusted = []
    for result in results:
        rate = 0.0 if sent.rates is None else sent.rates[result.client]
        tensors, discarded, norms = dict(result.tensors), dict.fromkeys(model, 0.0), {}
        for name, start in model.items() if sent.rates is not None else ():
            if is_adjustable(start):
                agreed = members.get(name), factors.get(name, 1.0)
                update, magnitude = adjust_tensor(start, tensors[name], rate, *agreed)
                tensors[name] = subtract_update(start, update)
                discarded[name], norms[name] = float(magnitude), float(update.norm())
        applied = AppliedAdjustment(rate=rate, discarded=discarded, norms=norms)
        adjusted.append(replace(result, tensors=tensors, applied=applied))
    return adjusted
