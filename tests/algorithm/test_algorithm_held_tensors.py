"""What a step holds while it works: never N copies of the model, whoever decodes them.

Flower's replies are bytes; decoding is left to the moment a tensor is asked for. These clients
count how often that happens and how many decoded tensors are alive at once.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult, FedPWSettings, WeightingState, server_step

CLIENTS = 30
TENSORS = 20


class LazyModel(Mapping[str, Tensor]):
    """A client's model that exists only while one of its tensors is looked at."""

    alive = most_alive = 0
    asked: ClassVar[Counter[tuple[int, str]]] = Counter()

    def __init__(self, client: int, names: list[str]) -> None:
        self.client, self.names = client, names

    def __getitem__(self, name: str) -> Tensor:
        seed = 1000 * self.client + self.names.index(name)
        tensor = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        LazyModel.asked[self.client, name] += 1
        LazyModel.alive += 1
        LazyModel.most_alive = max(LazyModel.most_alive, LazyModel.alive)
        weakref.finalize(tensor, self._released)
        return tensor

    @staticmethod
    def _released() -> None:
        LazyModel.alive -= 1

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def test_one_tensor_of_each_client_is_decoded_at_a_time_and_at_most_three_times() -> None:
    names = [f"layer{position}.weight" for position in range(TENSORS)]
    results = [
        ClientResult(client, LazyModel(client, names), loss=1.0 + client)
        for client in range(CLIENTS)
    ]
    model = {name: torch.full((50,), -0.1) for name in names}
    step = server_step(model, results, WeightingState(rounds=1), FedPWSettings())
    assert step.amplification
    assert len(LazyModel.asked) == CLIENTS * TENSORS
    assert max(LazyModel.asked.values()) <= 3
    assert LazyModel.most_alive <= CLIENTS + 1
    assert LazyModel.alive == 0
