"""Observers hear what a round was, in its order, and may stop the run, under both APIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.server import Server
from flwr.serverapp.strategy import FedAvg, Strategy
from support.federation import LEGACY, Federation, both_apis, parameters_of, proxies_of
from support.grid import ClientsGrid
from support.legacy_federation import manager_of, run_server, with_server_round
from support.records import array_record
from support.small_model import MODEL, good_client

from fedpw_flwr import FedPW, legacy
from fedpw_flwr.checkpoint import CheckpointStore
from fedpw_flwr.checkpoint.rounds import run_rounds
from fedpw_flwr.rounds.observers import Observer

NODES = [11, 12, 13]


class Diary(Observer):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def on_begin(self, after: int | None) -> None:
        self.heard.append(("begin", after))

    def on_round(self, server_round: int) -> None:
        self.heard.append(("round", server_round))

    def on_messages(self, phase: str, server_round: int, messages: Sequence[Message]) -> None:
        nodes = sorted(message.metadata.dst_node_id for message in messages)
        self.heard.append(("messages", phase, server_round, nodes))

    def on_replies(self, phase: str, server_round: int, replies: Sequence[Message]) -> None:
        nodes = sorted(reply.metadata.src_node_id for reply in replies)
        self.heard.append(("replies", phase, server_round, nodes))

    def on_step(
        self, server_round: int, arrays: ArrayRecord | None, metrics: MetricRecord | None
    ) -> None:
        assert arrays is not None
        assert metrics is not None
        self.heard.append(("step", server_round, list(arrays) == list(MODEL)))

    def on_evaluation(self, server_round: int, metrics: MetricRecord | None) -> None:
        assert metrics is not None
        self.heard.append(("evaluation", server_round, "accuracy" in metrics))

    def on_round_end(self, server_round: int, numbers: Mapping[str, float]) -> None:
        self.heard.append(("round end", server_round, "train/train_loss" in numbers))

    def on_checkpoint(self, server_round: int) -> None:
        self.heard.append(("checkpoint", server_round))

    def on_end(self, stopped: str | None, error: BaseException | None) -> None:
        self.heard.append(("end", stopped, error))


def heard_in(server_round: int) -> list[tuple[Any, ...]]:
    exchanges = [
        [(kind, phase, server_round, NODES) for kind in ("messages", "replies")]
        for phase in ("train", "evaluate")
    ]
    return [
        *(("round", server_round), *exchanges[0], ("step", server_round, True)),
        *(*exchanges[1], ("evaluation", server_round, True)),
        *(("round end", server_round, True), ("checkpoint", server_round)),
    ]


@pytest.mark.parametrize("kind", [FedPW, FedAvg])
def test_an_observer_hears_every_round_also_after_a_resume(
    kind: type[Strategy], tmp_path: Path
) -> None:
    diaries = [Diary(), Diary()]
    for diary, rounds in zip(diaries, (1, 3), strict=True):
        result = run_rounds(
            kind(),
            CheckpointStore(tmp_path),
            ClientsGrid(dict.fromkeys(NODES, good_client)),
            array_record(MODEL),
            num_rounds=rounds,
            resume=diary is diaries[1],
            fingerprint={"data": "mine"},
            observers=[diary],
        )
        assert sorted(result.train_metrics_clientapp) == [*range(1, rounds + 1)]
    before = ("round end", 0, False)
    end = ("end", None, None)
    begun = [("begin", None), ("checkpoint", 0), before]
    assert diaries[0].heard == [*begun, *heard_in(1), end]
    # The rounds that it had are told once more.
    again = [("begin", 1), before, ("round end", 1, True)]
    assert diaries[1].heard == [*again, *heard_in(2), *heard_in(3), end]


def test_an_observer_that_raises_ends_the_run_before_the_strategy_sees_the_replies(
    tmp_path: Path,
) -> None:
    class Watch(Observer):
        def on_replies(self, phase: str, server_round: int, replies: Sequence[Message]) -> None:
            raise ConnectionError("a machine is gone")

    strategy, diary = FedPW(), Diary()
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    store = CheckpointStore(tmp_path)
    with pytest.raises(ConnectionError) as caught:
        run_rounds(strategy, store, grid, array_record(MODEL), observers=[Watch(), diary])
    assert strategy.state.rounds == 0
    assert store.rounds() == [0]
    assert diary.heard[-1] == ("end", None, caught.value)


def test_an_observer_that_has_not_begun_hears_of_no_end(tmp_path: Path) -> None:
    class Refusing(Observer):
        def on_begin(self, after: int | None) -> None:
            raise FileNotFoundError("nothing to go on with")

    first, last = Diary(), Diary()
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    with pytest.raises(FileNotFoundError) as caught:
        FedPW(observers=[first, Refusing(), last]).start(grid, array_record(MODEL))
    assert first.heard == [("begin", None), ("end", None, caught.value)]
    assert last.heard == []


def test_an_observer_that_fails_at_the_end_fails_the_run_for_those_after_it() -> None:
    class Failing(Observer):
        def on_end(self, stopped: str | None, error: BaseException | None) -> None:
            raise ConnectionError("training diverged")

    first, last = Diary(), Diary()
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    with pytest.raises(ConnectionError) as caught:
        FedPW(observers=[first, Failing(), last]).start(grid, array_record(MODEL), 1)
    assert first.heard[-1] == ("end", None, None)
    assert last.heard[-1] == ("end", None, caught.value)


class StopAfter(Observer):
    """Stops a run after a round."""

    def __init__(self, last_round: int) -> None:
        self.last_round = last_round
        self.numbers: dict[int, dict[str, float]] = {}
        self.heard: list[Any] = []

    def on_begin(self, after: int | None) -> None:
        self.heard.append(after)

    def on_step(
        self, server_round: int, arrays: ArrayRecord | None, metrics: MetricRecord | None
    ) -> None:
        assert arrays is not None
        assert metrics is not None
        assert len(metrics["fedpw-weight"]) == len(NODES)
        self.heard.append(len(arrays))

    def on_evaluation(self, server_round: int, metrics: MetricRecord | None) -> None:
        assert metrics is not None
        self.heard.append(metrics["accuracy"])

    def on_round_end(self, server_round: int, numbers: Mapping[str, float]) -> None:
        self.numbers[server_round] = dict(numbers)

    def stop_reason(self) -> str | None:
        return "I saw enough" if max(self.numbers) >= self.last_round else None

    def on_end(self, stopped: str | None, error: BaseException | None) -> None:
        assert error is None
        self.heard.append(stopped)


def play(
    api: Federation, observer: Observer, folder: Path | None, resume: bool = False
) -> list[int]:
    """Play at most 5 rounds as a user of the API does; return the rounds that trained."""
    clients, options = dict.fromkeys(NODES, good_client), {"observers": [observer]}
    if api is not LEGACY:
        strategy = FedPW(**options, checkpoint_dir=folder, resume=resume)
        grid = ClientsGrid(clients)
        result = strategy.start(
            *(grid, array_record(MODEL), 5),
            evaluate_fn=lambda now, arrays: MetricRecord({"now": now}),
        )
        return list(result.train_metrics_clientapp)
    ours = legacy.FedPW(
        **options,
        initial_parameters=parameters_of(array_record(MODEL)),
        array_names=list(MODEL),
        on_fit_config_fn=with_server_round,
        evaluate_fn=lambda now, arrays, config: (0.5, {"now": now}),
        fit_metrics_aggregation_fn=averaged,
        evaluate_metrics_aggregation_fn=averaged,
    )
    proxies = proxies_of(clients, list(MODEL))
    history, _ = run_server(ours, proxies, 5, checkpoint_dir=folder, resume=resume)
    return [now for now, _ in history.metrics_distributed_fit["fedpw-weight"]]


def averaged(told: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    return {name: sum(each[name] for _, each in told) / len(told) for name in told[0][1]}


@both_apis
@pytest.mark.parametrize("saved", [True, False])
def test_an_observer_of_the_strategy_stops_the_run(
    api: Federation, saved: bool, tmp_path: Path, flower_log: pytest.LogCaptureFixture
) -> None:
    observer, folder = StopAfter(3), tmp_path if saved else None
    assert play(api, observer, folder) == [1, 2, 3]
    assert "Stopped after round 3 of 5: I saw enough" in flower_log.text
    assert observer.heard == [None, *[4, observer.heard[2]] * 3, "I saw enough"]
    # What the clients and the server said, by name.
    assert observer.numbers[0].keys() >= {"now"}
    told = observer.numbers[3]
    assert {"train/train_loss", "evaluate/accuracy", "now"} <= told.keys()
    weights = [told[f"weight/client_{node}"] for node in NODES]
    assert sum(weights) == pytest.approx(1)
    if saved:
        assert CheckpointStore(tmp_path).rounds() == [3, 2, 1]
        # It is still enough when the run is taken up again; another observer goes on.
        again = StopAfter(3)
        assert play(api, again, tmp_path, resume=True) == [1, 2, 3]
        assert again.numbers == observer.numbers
        assert again.heard == [3, "I saw enough"]
        assert play(api, StopAfter(9), tmp_path, resume=True) == [1, 2, 3, 4, 5]


def test_observers_that_nobody_would_tell_are_refused() -> None:
    strategy, grid = FedPW(observers=[Diary()]), ClientsGrid(dict.fromkeys(NODES, good_client))
    with pytest.raises(ValueError, match=r"observers was given, but not FedPW's start"):
        FedAvg.start(strategy, grid, array_record(MODEL))
    manager = manager_of(proxies_of(dict.fromkeys(NODES, good_client), list(MODEL)))
    initial = parameters_of(array_record(MODEL))
    with pytest.raises(ValueError, match=r"Flower's own server tells them nothing"):
        Server(
            client_manager=manager,
            strategy=legacy.FedPW(observers=[Diary()], initial_parameters=initial),
        ).fit(1, timeout=None)
    with pytest.raises(ValueError, match="resume=True needs checkpoint_dir"):
        legacy.CheckpointedServer(client_manager=manager, strategy=legacy.FedPW(), resume=True)
