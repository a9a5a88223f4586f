"""A legacy run draws the same clients whatever the order in which they came."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.client import NumPyClient
from flwr.common import (
    Code,
    DisconnectRes,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetParametersIns,
    GetParametersRes,
    GetPropertiesIns,
    GetPropertiesRes,
    ReconnectIns,
    Status,
)
from flwr.server.client_proxy import ClientProxy

from fedpw_flwr import FedPWClient
from fedpw_flwr.legacy import OrderedClientManager


class Site(NumPyClient):
    """Trains nothing."""

    def fit(self, parameters: Any, config: Any) -> Any:
        return parameters, 1, {"train_loss": 1.0}


class InProcess(ClientProxy):
    """A real client of this process behind Flower's interface; counts what it is asked."""

    def __init__(self, node_id: int, client: NumPyClient) -> None:
        super().__init__(str(node_id))
        self._client = client.to_client()
        self.asked = 0

    def get_properties(
        self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None
    ) -> GetPropertiesRes:
        self.asked += 1
        return self._client.get_properties(ins)

    def get_parameters(
        self, ins: GetParametersIns, timeout: float | None, group_id: int | None
    ) -> GetParametersRes:
        return self._client.get_parameters(ins)

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        return self._client.fit(ins)

    def evaluate(
        self, ins: EvaluateIns, timeout: float | None, group_id: int | None
    ) -> EvaluateRes:
        return self._client.evaluate(ins)

    def reconnect(
        self, ins: ReconnectIns, timeout: float | None, group_id: int | None
    ) -> DisconnectRes:
        return DisconnectRes("")


class Broken(InProcess):
    """Cannot be asked."""

    def get_properties(
        self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None
    ) -> GetPropertiesRes:
        raise ConnectionError("it is gone")


class Odd(InProcess):
    """Answers with something that is no identity."""

    def get_properties(
        self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None
    ) -> GetPropertiesRes:
        return GetPropertiesRes(Status(Code.OK, ""), {"client-id": "third"})


def manager_of(clients: Sequence[ClientProxy]) -> OrderedClientManager:
    manager = OrderedClientManager()
    for client in clients:
        assert manager.register(client)
    return manager


def sites(order: Sequence[int]) -> list[InProcess]:
    """Ten sites under node ids that differ from run to run."""
    node_ids = iter(np.random.default_rng(order[0]).permutation(10**6).tolist())
    return [InProcess(next(node_ids), FedPWClient(Site(), client_id=site)) for site in order]


def drawn(manager: OrderedClientManager, seed: int) -> list[int]:
    random.seed(seed)
    chosen = [client for _ in range(5) for client in manager.sample(3)]
    answers = [client.get_properties(GetPropertiesIns({}), None, None) for client in chosen]
    return [int(answer.properties["client-id"]) for answer in answers]


def test_two_runs_draw_the_same_sites() -> None:
    first = drawn(manager_of(sites(range(10))), seed=1)
    assert drawn(manager_of(sites([7, 3, 0, 9, 1, 5, 2, 8, 6, 4])), seed=1) == first
    assert len(set(first)) > 3


def test_a_site_is_asked_once() -> None:
    clients = sites(range(4))
    manager = manager_of(clients)
    for _ in range(5):
        manager.sample(2)
    assert [client.asked for client in clients] == [1, 1, 1, 1]


def test_nobody_is_asked_where_all_take_part() -> None:
    clients = sites(range(4))
    assert len(manager_of(clients).sample(4)) == 4
    assert [client.asked for client in clients] == [0, 0, 0, 0]


def test_sites_that_cannot_say_who_they_are_take_part() -> None:
    silent = InProcess(1, FedPWClient(Site()))
    clients = [*sites(range(3)), silent, Broken(2, Site()), Odd(3, Site())]
    manager = manager_of(clients)
    chosen = {client.cid for _ in range(60) for client in manager.sample(2)}
    assert chosen == {client.cid for client in clients}


def test_too_few_sites_give_none() -> None:
    assert manager_of(sites(range(2))).sample(3, min_num_clients=1) == []
