"""A legacy run draws the same clients whatever the order in which they came."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import GetPropertiesIns
from support.legacy_federation import app_clients

from fedpw_flwr import FedPWClient
from fedpw_flwr.legacy import OrderedClientManager


class Site(NumPyClient):
    """Trains nothing."""

    def fit(self, parameters: Any, config: Any) -> Any:
        return parameters, 1, {"train_loss": 1.0}


class Broken(Site):
    """Cannot be asked."""

    def get_properties(self, config: Any) -> Any:
        raise ConnectionError("it is gone")


class Odd(Site):
    """Answers with something that is no identity."""

    def get_properties(self, config: Any) -> Any:
        return {"client-id": "third"}


class Sites:
    """Ten sites under node ids that differ from run to run; the first to come is first."""

    def __init__(self, order: Sequence[int], others: Sequence[NumPyClient] = ()) -> None:
        ids = np.random.default_rng(order[0]).permutation(10**6).tolist()
        self.clients: dict[int, NumPyClient] = {
            ids.pop(): FedPWClient(Site(), client_id=site) for site in order
        }
        self.clients.update((ids.pop(), other) for other in others)
        self.asked: Counter[int] = Counter()
        self.manager = OrderedClientManager()
        for proxy in app_clients(ClientApp(client_fn=self._client_of), self.clients):
            self.manager.register(proxy)

    def _client_of(self, context: Context) -> Client:
        self.asked[context.node_id] += 1
        return self.clients[context.node_id].to_client()

    def drawn(self, seed: int) -> list[Any]:
        random.seed(seed)
        chosen = [client for _ in range(5) for client in self.manager.sample(3)]
        answers = [client.get_properties(GetPropertiesIns({}), None, None) for client in chosen]
        return [answer.properties["client-id"] for answer in answers]


def test_two_runs_draw_the_same_sites() -> None:
    first = Sites(range(10)).drawn(seed=1)
    assert Sites([7, 3, 0, 9, 1, 5, 2, 8, 6, 4]).drawn(seed=1) == first
    assert len(set(first)) > 3


def test_a_site_is_asked_once_and_only_where_not_all_take_part() -> None:
    sites = Sites(range(4))
    assert len(sites.manager.sample(4)) == 4
    assert not sites.asked
    for _ in range(5):
        sites.manager.sample(2)
    assert list(sites.asked.values()) == [1, 1, 1, 1]


def test_sites_that_cannot_say_who_they_are_take_part() -> None:
    sites = Sites(range(3), [FedPWClient(Site()), Broken(), Odd()])
    chosen = {client.node_id for _ in range(60) for client in sites.manager.sample(2)}
    assert chosen == set(sites.clients)


def test_too_few_sites_give_none() -> None:
    assert Sites(range(2)).manager.sample(3, min_num_clients=1) == []
