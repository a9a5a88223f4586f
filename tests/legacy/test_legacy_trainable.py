"""Lists of parameters have no names: which arrays are trainable, names or the clients say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Context
from flwr.client import Client
from flwr.clientapp import ClientApp
from flwr.common import FitIns, FitRes, Parameters
from flwr.server.client_proxy import ClientProxy
from support.legacy_federation import (
    INITIAL,
    NAMES,
    NoiseClient,
    PlainClient,
    app_clients,
    fit_round,
    good_fit,
    plain_clients,
    with_server_round,
)

from fedpw_flwr import FedPWClient
from fedpw_flwr.legacy import FedPW
from fedpw_flwr.wire.adjustment import REPORT_KEY, REQUEST_KEY, AdjustmentReport, AdjustmentRequest

NODES = [1, 2, 3, 4]
TRAINED = [0, 1]
"""Places of the weight and the bias; behind them come a running mean and a counter."""


def all_say(places: list[int] | None) -> dict[int, list[int] | None]:
    return dict.fromkeys(NODES, places)


def telling(told: dict[int, list[int] | None]) -> list[ClientProxy]:
    """FedPWClients, each told which arrays are trainable, or nothing."""

    def client_fn(context: Context) -> Client:
        number = int(context.node_config["partition-id"])
        client = FedPWClient(NoiseClient(number), device="cpu", trainable=told[number])
        return client.to_client()

    return app_clients(ClientApp(client_fn=client_fn), told)


def strategy_with(**arguments: Any) -> FedPW:
    return FedPW(on_fit_config_fn=with_server_round, device="cpu", **arguments)


def rounds(
    strategy: FedPW, clients: list[ClientProxy], number: int = 3
) -> tuple[list[Parameters], list[Any]]:
    parameters, models, counts = INITIAL, [], []
    for server_round in range(1, number + 1):
        parameters, metrics = fit_round(strategy, clients, parameters, server_round)
        models.append(parameters)
        counts.append(metrics["fedpw-quarantined"])
    return models, counts


def test_what_clients_tell_is_as_good_as_names() -> None:
    by_names = strategy_with(array_names=NAMES, adjustment="client")
    expected, _ = rounds(by_names, telling(all_say(None)))
    told = strategy_with(adjustment="client")
    models, counts = rounds(told, telling(all_say(TRAINED)))
    assert told.settings.trainable == ("0", "1")
    assert models == expected
    assert told.state == by_names.state
    assert counts == [0, 0, 0]


def test_without_names_and_without_being_told_what_stands_before_a_counter_is_not_trained() -> None:
    by_place = strategy_with(array_names=NAMES, trainable=NAMES[:1])
    expected, _ = rounds(by_place, telling(all_say(None)))
    untold = strategy_with()
    models, _ = rounds(untold, telling(all_say(None)))
    assert untold.settings.trainable is None
    assert models == expected


def test_client_that_was_not_told_goes_along_and_order_does_not_matter() -> None:
    strategy = strategy_with(adjustment="client")
    _, counts = rounds(strategy, telling({1: [0, 1], 2: None, 3: [1, 0], 4: None}))
    assert strategy.settings.trainable == ("0", "1")
    assert counts == [0, 0, 0]


def test_client_that_disagrees_is_set_aside_and_named(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    strategy = strategy_with(adjustment="client")
    _, counts = rounds(strategy, telling({1: [0, 1], 2: [0, 1], 3: [0], 4: [0, 1]}))
    assert strategy.settings.trainable == ("0", "1")
    assert counts == [1, 1, 1]
    told = [record.getMessage() for record in flower_log.records if record.levelname == "WARNING"]
    assert "no names" in told.pop(0)
    assert len(told) == 3
    assert all("node 3 quarantined" in line and "[0]" in line for line in told)
    assert all("[0, 1]" in line for line in told)
    assert sorted(strategy.state.loss.clients) == [1, 2, 4]


def test_what_was_agreed_stays_when_later_clients_all_disagree() -> None:
    strategy = strategy_with(adjustment="client")
    (first,), _ = rounds(strategy, telling(all_say(TRAINED)), 1)
    before = copy.deepcopy(strategy.state)
    parameters, metrics = fit_round(strategy, telling(all_say([0])), first, 2)
    assert strategy.settings.trainable == ("0", "1")
    assert metrics["fedpw-quarantined"] == len(NODES)
    assert parameters == first
    assert strategy.state == before


def test_names_win_over_what_clients_tell() -> None:
    quiet = strategy_with(array_names=NAMES, adjustment="client")
    expected, _ = rounds(quiet, telling(all_say(None)))
    named = strategy_with(array_names=NAMES, adjustment="client")
    models, counts = rounds(named, telling({1: [0], 2: [0, 1], 3: [2], 4: None}))
    assert named.settings.trainable is None
    assert counts == [0, 0, 0]
    assert models == expected


def reporting(trainable: tuple[int, ...]) -> Callable[[int, FitIns], FitRes]:
    """A client whose report is in order but for the arrays it takes as trainable."""

    def fit(node: int, ins: FitIns) -> FitRes:
        result = good_fit(node, ins)
        asked = AdjustmentRequest.decode(ins.config[REQUEST_KEY])
        report = AdjustmentReport(
            asked.rate, asked.consensus_round, (0.0,) * len(NAMES), trainable=trainable
        )
        result.metrics[REPORT_KEY] = report.encode()
        return result

    return fit


@pytest.mark.parametrize("trainable", [(3,), (0, 3), ()], ids=["counter", "and a counter", "none"])
def test_one_client_that_tells_nonsense_does_not_end_the_run(trainable: tuple[int, ...]) -> None:
    strategy = FedPW(adjustment="client")
    _, metrics = fit_round(strategy, plain_clients(NODES, {2: reporting(trainable)}))
    assert metrics["fedpw-quarantined"] == 1
    assert metrics["fedpw-client-id"] == "[1, 3, 4]"
    assert strategy.settings.trainable is None


def test_trainable_needs_the_names_it_speaks_of() -> None:
    with pytest.raises(ValueError, match=r"array_names=list\(model.state_dict\(\)\)"):
        FedPW(trainable=["body.weight"])


@pytest.mark.parametrize(
    ("names", "error"),
    [
        ([], ValueError),
        (["body.weight", "body.weight"], ValueError),
        ("body.weight", TypeError),
        ([1, 2], TypeError),
    ],
)
def test_impossible_names_are_refused(names: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="array_names"):
        FedPW(array_names=names)


@pytest.mark.parametrize("names", [NAMES[:3], [*NAMES, "head.bias"]])
def test_wrong_number_of_names_is_refused_before_a_client_is_asked(names: list[str]) -> None:
    asked: list[int] = []

    def note(node: int, ins: FitIns) -> FitRes:
        asked.append(node)
        return good_fit(node, ins)

    clients: list[ClientProxy] = [PlainClient(node, note) for node in NODES]
    with pytest.raises(ValueError, match=f"array_names has {len(names)} names, the model 4 arrays"):
        fit_round(FedPW(array_names=names), clients)
    assert asked == []
