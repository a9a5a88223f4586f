"""What holds for every baseline, beside what `tests/rounds` claims of every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from support.baselines_federation import (
    BUILDS,
    MODEL,
    TRAINED,
    Local,
    client_of,
    drawn,
    grid_of,
    local,
)
from support.grid import ClientsGrid, train_round
from support.records import array_record, ndarrays, payloads

from fedpw_flwr.baselines import EqualFedAvg, FedMGDAPlus
from fedpw_flwr.baselines.screened import ScreenedStrategy
from fedpw_flwr.lab.app.recording import client_metrics

Build = Callable[..., ScreenedStrategy]
every_strategy = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)

CLIENTS = range(5)


def honest(odd_loss: float | None = None) -> ClientsGrid:
    """Five clients, and one beside them that reports an odd loss if one is given."""
    clients = {100 + one: client_of(drawn, one) for one in CLIENTS}
    if odd_loss is not None:
        clients[109] = client_of(lambda who, now: replace(drawn(who, now), loss=odd_loss), 9)
    return ClientsGrid(clients)


def rounds_of(
    strategy: ScreenedStrategy, grid: ClientsGrid, count: int = 3
) -> tuple[ArrayRecord, list[dict[str, Any]]]:
    arrays, records = array_record(MODEL), []
    for server_round in range(1, count + 1):
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        records.append(dict(metrics))
    return arrays, records


@pytest.mark.parametrize("name", ["qfedavg", "afl", "term"])
def test_a_loss_that_is_not_finite_costs_only_its_reply(name: str) -> None:
    expected, _ = rounds_of(BUILDS[name](), honest())
    arrays, records = rounds_of(BUILDS[name](), honest(odd_loss=float("nan")))
    assert payloads(arrays) == payloads(expected)
    assert [record["quarantined"] for record in records] == [1, 1, 1]


@pytest.mark.parametrize("name", ["fedavg_equal", "fedmgda_plus", "fedheal"])
def test_without_need_of_losses_a_strange_one_is_only_not_recorded(name: str) -> None:
    _, records = rounds_of(BUILDS[name](), honest(odd_loss=float("nan")))
    assert records[0]["client-id"] == [*CLIENTS, 9]
    assert "client-loss" not in records[0]


def test_a_step_that_no_number_holds_leaves_the_model_as_it_is() -> None:
    """Replies are set aside one by one until none is left to blame."""
    strategy = FedMGDAPlus(server_learning_rate=1e30, rescale="none")
    arrays, records = rounds_of(strategy, honest(), count=1)
    assert payloads(arrays) == payloads(array_record(MODEL))
    assert records[0]["quarantined"] == len(CLIENTS)


@every_strategy
def test_running_statistics_and_counters_are_averaged_never_stepped(build: Build) -> None:
    same = local([0.1] * 4, mean=(0.0625, -0.125), var=(0.125, 0.25), batches=1)
    arrays, _ = rounds_of(build(), grid_of([same] * 3), count=4)
    model = ndarrays(arrays)
    np.testing.assert_allclose(model["norm.running_mean"], [0.25, 1.5], rtol=1e-6)
    np.testing.assert_allclose(model["norm.running_var"], [0.5, 1.0], rtol=1e-6)
    assert model["norm.num_batches_tracked"] == 14


@every_strategy
@pytest.mark.parametrize("count", [1, 6, 7, 11])
def test_running_variances_never_fall_below_zero(build: Build, count: int) -> None:
    """What momentum, or a difference that rounds, would do to variances that vanish."""

    def vanishing(who: int, server_round: int) -> Local:
        return local([0.1] * 4, var=now)

    strategy = build(min_train_nodes=1, min_available_nodes=1)
    arrays = array_record({**MODEL, "norm.running_var": np.array([1e6, 3.7e5], np.float32)})
    grid = ClientsGrid({100 + one: client_of(vanishing, one) for one in range(count)})
    for server_round in range(1, 4):
        now = ndarrays(arrays)["norm.running_var"]
        arrays, _ = train_round(strategy, grid, arrays, server_round)
        assert (ndarrays(arrays)["norm.running_var"] >= 0).all()


EQUALISED = ["fedavg", "fedavg_equal", "fedprox", "afl", "term", "fedmgda_plus", "fedheal"]


@pytest.mark.parametrize("name", EQUALISED)
def test_equal_clients_make_it_fedavg(name: str) -> None:
    same = local([0.5, -0.25, 1.0, 0.125], (0.5, -1.0), batches=3)
    clients = [same] * 4
    expected, _ = train_round(FlowerFedAvg(), grid_of(clients), array_record(MODEL))
    arrays, metrics = train_round(BUILDS[name](), grid_of(clients), array_record(MODEL))
    assert metrics["client-weight"] == pytest.approx([0.25] * 4)
    for key in TRAINED:
        np.testing.assert_allclose(ndarrays(arrays)[key], ndarrays(expected)[key], rtol=1e-6)


@every_strategy
def test_the_round_is_recorded_client_by_client(build: Build) -> None:
    """The lists run over the participants in the order of identity, also beside the app's own."""
    strategy = build(train_metrics_aggr_fn=client_metrics)
    _, records = rounds_of(strategy, honest())
    for server_round, record in enumerate(records, start=1):
        assert record["client-id"] == list(CLIENTS)
        assert record["client-loss"] == [drawn(one, server_round).loss for one in CLIENTS]
        assert len(record["client-weight"]) == len(CLIENTS)
        assert record["train_loss"] > 0


@pytest.mark.parametrize("name", ["fedavg", "term", "fedadam"])
def test_a_reply_without_examples_is_set_aside_where_others_have_them(name: str) -> None:
    clients = [drawn(0, 1), local([0.3] * 4, examples=None), drawn(2, 1)]
    _, metrics = train_round(BUILDS[name](), grid_of(clients), array_record(MODEL))
    assert metrics["client-id"] == [0, 2]
    assert metrics["quarantined"] == 1


@pytest.mark.parametrize("name", ["fedavg", "term"])
def test_where_nobody_has_examples_all_count_the_same(name: str) -> None:
    clients = [local([0.3] * 4, examples=None)] * 4
    _, metrics = train_round(BUILDS[name](), grid_of(clients), array_record(MODEL))
    assert metrics["client-weight"] == [0.25] * 4


def test_a_model_that_is_not_finite_is_not_sent() -> None:
    model = {**MODEL, "body.bias": np.float32([np.inf, 0])}
    with pytest.raises(ValueError, match=r"round 1: tensor 'body\.bias' holds values"):
        train_round(EqualFedAvg(), honest(), array_record(model))


@every_strategy
def test_the_summary_names_the_settings(build: Build, flower_log: pytest.LogCaptureFixture) -> None:
    strategy = build()
    strategy.summary()
    logged = flower_log.text
    assert type(strategy).__name__ in logged
    for name, value in strategy.settings.items():
        assert f"{name} ({value})" in logged
