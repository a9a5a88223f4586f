"""Builders shared by the tests of the algorithm: rounds written as updates, not as models.

ALGORITHM.md speaks of updates Δ_k = w − w_k, the server step receives models w_k. Writing the
updates keeps the hand computations in the tests next to the numbers they start from.
"""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult

Updates = Mapping[int, Mapping[str, Tensor] | Sequence[float]]
RoundBuilder = Callable[..., list[ClientResult]]


@pytest.fixture(scope="session")
def a_round() -> RoundBuilder:
    """Build a round's results from w, Δ_k by client, and ℓ_k by client.

    An update that is a plain list belongs to the tensor "weight". `losses` may be one number for
    everybody; `examples` are the clients' numbers of training examples.
    """

    def build(
        model: Mapping[str, Tensor],
        updates: Updates,
        losses: Mapping[int, float] | float | None = 1.0,
        examples: Mapping[int, float] | None = None,
    ) -> list[ClientResult]:
        results = []
        for client, update in updates.items():
            if not isinstance(update, Mapping):
                entries = torch.tensor(update, dtype=model["weight"].dtype)
                update = {"weight": entries.reshape(model["weight"].shape)}
            results.append(
                ClientResult(
                    client=client,
                    tensors={name: start - update[name] for name, start in model.items()},
                    loss=losses[client] if isinstance(losses, Mapping) else losses,
                    num_examples=None if examples is None else examples[client],
                )
            )
        return results

    return build
