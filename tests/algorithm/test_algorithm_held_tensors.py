"""What a step holds while it works: never N copies of the model, whoever decodes them.

Flower's replies are bytes; decoding is left to the moment a tensor is asked for. These clients
count how often that happens and how many decoded tensors are alive at once.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult, FedPWSettings, WeightingState, server_step

CLIENTS = 30
TENSORS = 20


class Decoding:
    """Counts of decoded tensors: alive now, alive at most, asked for by (client, name)."""

    def __init__(self) -> None:
        self.alive = 0
        self.most_alive = 0
        self.asked: Counter[tuple[int, str]] = Counter()

    def decoded(self, tensor: Tensor) -> None:
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(tensor, self._released)

    def _released(self) -> None:
        self.alive -= 1


class LazyModel(Mapping[str, Tensor]):
    """A client's model that exists only while one of its tensors is looked at."""

    def __init__(self, client: int, names: list[str], decoding: Decoding) -> None:
        self.client = client
        self.names = names
        self.decoding = decoding

    def __getitem__(self, name: str) -> Tensor:
        self.decoding.asked[self.client, name] += 1
        seed = 1000 * self.client + self.names.index(name)
        tensor = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        self.decoding.decoded(tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def test_one_tensor_of_each_client_is_decoded_at_a_time_and_at_most_three_times() -> None:
    names = [f"layer{position}.weight" for position in range(TENSORS)]
    counts = Decoding()
    results = [
        ClientResult(client, LazyModel(client, names, counts), loss=1.0 + client)
        for client in range(CLIENTS)
    ]
    model = {name: torch.full((50,), -0.1) for name in names}
    step = server_step(model, results, WeightingState(rounds=1), FedPWSettings())
    assert step.amplification
    assert len(counts.asked) == CLIENTS * TENSORS
    assert max(counts.asked.values()) <= 3
    assert counts.most_alive <= CLIENTS + 1
    assert counts.alive == 0
