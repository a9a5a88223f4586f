"""Clients come and go: who is away keeps its place, and nothing breaks where nobody trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from support.grid import ClientsGrid, running
from support.legacy_federation import app_grid
from support.records import array_record, payloads
from support.small_model import MODEL, good_client

from fedpw_flwr import FedPW, FedPWClient, fedpw_mod, numpy_client_app
from fedpw_flwr.rounds.attendance import Attendance
from fedpw_flwr.wire.records import IDENTITY_QUERY

NODES = list(range(41, 49))


def test_training_can_be_switched_off() -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    strategy = FedPW(fraction_train=0.0)
    result = strategy.start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=2)
    assert {message.metadata.message_type for message in grid.sent} == {"evaluate"}
    assert payloads(result.arrays) == payloads(array_record(MODEL))
    assert "accuracy" in result.evaluate_metrics_clientapp[2]
    assert strategy.state == FedPW().state


def app_of_functions(**options: Any) -> ClientApp:
    """An ordinary ClientApp; every second client states who it is in its replies."""
    app = ClientApp(**options)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        (reply,) = good_client(message)
        if context.node_id % 2:
            reply.content["identity"] = ConfigRecord({"client-id": 100 - context.node_id})
        return reply

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"eval_loss": 1.0, "num-examples": 7})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        raise AssertionError("nobody asks this")

    return app


SOME = {"fraction_train": 0.5, "fraction_evaluate": 0.5}


@pytest.mark.parametrize(
    ("options", "mods"),
    [
        (SOME, []),
        ({"checkpoint_dir": "checkpoints", "seed": 4, **SOME}, []),
        ({"adjustment": "client", "fraction_evaluate": 0.25}, []),
        ({"adjustment": "client", "upload": "packed", **SOME}, [fedpw_mod]),
    ],
    ids=["server", "checkpoints", "all train", "packed"],
)
def test_clients_that_have_no_function_for_it_are_never_asked_who_they_are(
    options: dict[str, Any], mods: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower raises at the client before any of its mods could answer."""
    monkeypatch.chdir(tmp_path)
    grid = app_grid(app_of_functions(mods=mods), NODES)
    result = FedPW(**options).start(grid, array_record(MODEL), num_rounds=3)
    assert {message.metadata.message_type for message in grid.sent} == {"train", "evaluate"}
    assert [record["fedpw-failed"] for record in result.train_metrics_clientapp.values()] == [0] * 3


def test_a_resumed_run_and_clients_that_fail_lead_to_no_question(tmp_path: Path) -> None:
    def sometimes(message: Message) -> list[Message]:
        if message.metadata.dst_node_id == NODES[0]:
            raise RuntimeError("no space left on the device")
        return list(good_client(message))

    options: dict[str, Any] = {"adjustment": "client", "checkpoint_dir": tmp_path, **SOME}
    grid = ClientsGrid(dict.fromkeys(NODES, sometimes))
    FedPW(**options).start(grid, array_record(MODEL), num_rounds=2)
    elsewhere = ClientsGrid(dict.fromkeys([NODES[0], *range(61, 69)], sometimes))
    FedPW(resume=True, **options).start(elsewhere, array_record(MODEL), num_rounds=4)
    sent = [*grid.sent, *elsewhere.sent]
    assert {message.metadata.message_type for message in sent} == {"train", "evaluate"}


def running_as(client: int) -> Callable[[Message], Any]:
    """A client of `numpy_client_app` that has a number of its own."""

    class Trains(NumPyClient):
        def fit(self, parameters: Any, config: Any) -> Any:
            trained = [(array * 0.5).astype(array.dtype) for array in parameters]
            return trained, 9, {"train_loss": 1.0 + client}

    app = numpy_client_app(lambda context: FedPWClient(Trains(), client_id=client))
    return running(app, Context(1, 1, {}, RecordDict(), {}))


def test_clients_that_show_that_they_answer_are_asked_also_after_a_restart_elsewhere(
    tmp_path: Path,
) -> None:
    def strategy(folder: str, **options: Any) -> FedPW:
        return FedPW(
            seed=3,
            fraction_train=0.75,
            fraction_evaluate=0.0,
            checkpoint_dir=tmp_path / folder,
            **options,
        )

    def trained_in(result: Any) -> list[list[int]]:
        records = result.train_metrics_clientapp
        return [list(records[now]["fedpw-client-id"]) for now in sorted(records)]

    def grid_at(nodes: range) -> ClientsGrid:
        return ClientsGrid({node: running_as(client) for client, node in enumerate(nodes)})

    grid, arrays = grid_at(range(41, 49)), array_record(MODEL)
    straight = strategy("straight").start(grid, arrays, num_rounds=8)
    asked = [message.metadata.message_type == IDENTITY_QUERY for message in grid.sent]
    # Nobody before every node has replied; then everybody, once.
    first = asked.index(True)
    assert {message.metadata.dst_node_id for message in grid.sent[:first]} == set(range(41, 49))
    assert sum(asked) == sum(asked[first : first + 8]) == 8

    strategy("broken").start(grid_at(range(41, 49)), arrays, num_rounds=4)
    # At other nodes, in another order.
    grid = grid_at(range(99, 91, -1))
    elsewhere = strategy("broken", resume=True).start(grid, arrays, num_rounds=8)
    assert trained_in(elsewhere) == trained_in(straight)
    assert payloads(elsewhere.arrays) == payloads(straight.arrays)


def test_nobody_is_asked_where_some_clients_have_no_function_for_it() -> None:
    functions = app_grid(app_of_functions(mods=[]), NODES[4:])
    clients = {**{node: running_as(node) for node in NODES[:4]}, **functions.clients}
    for seed in range(3):
        grid = ClientsGrid(clients)
        strategy = FedPW(seed=seed, fraction_train=0.25, fraction_evaluate=0.0)
        strategy.start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=4)
        assert {message.metadata.message_type for message in grid.sent} == {"train"}


def test_nobody_there_for_a_moment_ends_no_run_that_goes_on_with_fewer() -> None:
    attendance, looks = Attendance(0.05, "continue"), iter([[], [7]])
    assert attendance.wait(lambda: [7], 2) == [7]
    assert attendance.wait(lambda: next(looks), 2) == [7]
