"""What an honest client sends where the clients adjust their own updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fedpw_flwr.algorithm import AppliedAdjustment, ClientResult, SentAdjustment
from fedpw_flwr.algorithm.client_step import adjust_tensor, is_adjustable, subtract_update


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
        asked_round = None if sent.consensus is None else sent.consensus.round
        applied = AppliedAdjustment(rate, discarded, asked_round, norms)
        adjusted.append(replace(result, tensors=tensors, applied=applied))
    return adjusted
