"""Rounds that change nothing: an error from the start, a warning at the end of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from support.adjusting_clients import failing, round_of, silent
from support.federation import (
    APIS,
    BASELINES,
    LEGACY,
    MESSAGE,
    MODEL,
    Federation,
    both_apis,
    every_method,
    parameters_of,
    proxies_of,
    warnings,
)
from support.grid import Client, ClientsGrid
from support.legacy_federation import run_server
from support.records import array_record, ndarrays, payloads
from support.small_model import evaluate_reply, good_client, train_reply

from fedpw_flwr.checkpoint import CheckpointStore
from fedpw_flwr.rounds.faults import UnusableRepliesError
from fedpw_flwr.rounds.loop import run_rounds

NODES = [21, 22, 23]
EQUAL = next(baseline for baseline in BASELINES if baseline.name == "fedavg_equal")
some_methods = pytest.mark.parametrize("api", [*APIS, EQUAL], ids=lambda api: api.name)


def failing_in(*rounds: int) -> dict[int, Client]:
    def client(message: Message) -> list[Message]:
        if message.metadata.message_type != "train":
            return [evaluate_reply(message)]
        return failing(message) if round_of(message) in rounds else good_client(message)

    return dict.fromkeys(NODES, client)


@some_methods
def test_three_rounds_from_the_start_without_a_usable_reply_are_an_error_that_counts(
    api: Federation,
) -> None:
    def diverged(message: Message) -> list[Message]:
        reply = train_reply(message)
        model = ndarrays(reply.content.array_records["arrays"])
        bias = model["body.bias"] * np.float32("nan")
        reply.content["arrays"] = array_record({**model, "body.bias": bias})
        return [reply]

    clients = {21: failing, 22: failing, 23: diverged, 24: silent}
    with pytest.raises(UnusableRepliesError) as raised:
        api.run(api.strategy(fraction_evaluate=0.0), clients, 9)
    told = str(raised.value)
    assert told.startswith("3 rounds from the start had no reply that can be used")
    assert "RuntimeError: the battery is empty" in told
    assert "6 times a failure" in told
    assert "3 times a loss or arrays that are not finite" in told
    assert "lower the learning rate" in told
    if api is not LEGACY:
        # Flower's legacy server waits for every client.
        assert "3 times no reply" in told
        assert "start(timeout=...)" in told


@pytest.mark.parametrize(
    ("clients", "said"),
    [
        (
            {21: lambda message: [train_reply(message, loss=[0.5])]},
            r"(?s)3 times a .*sum\(losses\)",
        ),
        (dict.fromkeys(NODES, silent), r"9 times no reply\. .*logs.*longer timeout"),
        (dict.fromkeys(NODES, failing), r"9 times a failure((?!timeout).)*The log has each"),
    ],
    ids=["one client", "no reply", "failures"],
)
def test_the_error_says_where_to_look(clients: dict[int, Client], said: str) -> None:
    options = {"min_train_nodes": 1, "min_available_nodes": 1, "fraction_evaluate": 0.0}
    with pytest.raises(UnusableRepliesError, match=said):
        MESSAGE.run(MESSAGE.strategy(**options), clients, 7)


@both_apis
def test_a_run_that_began_well_may_lose_any_number_of_rounds(api: Federation) -> None:
    run = api.run(api.strategy(), failing_in(*range(2, 7)), 6)
    assert [one["fedpw-failed"] for one in run.train.values()] == [0, *[3] * 5]


def with_start(api: Federation, folder: Path) -> None:
    api.run(api.strategy(), failing_in(3, 4), 4)


def with_checkpoints(api: Federation, folder: Path) -> None:
    clients, arrays = failing_in(3, 4), array_record(MODEL)
    if api is not LEGACY:
        grid, store = ClientsGrid(clients), CheckpointStore(folder)
        run_rounds(api.strategy(), store, grid, arrays, num_rounds=4)
        return
    strategy = api.strategy(initial_parameters=parameters_of(arrays))
    run_server(strategy, proxies_of(clients, list(MODEL)), 4, checkpoint_dir=folder)


ENDS: list[tuple[Federation, Callable[..., None]]] = [
    (api, play) for api in [MESSAGE, EQUAL] for play in (with_start, with_checkpoints)
]
# Flower's own legacy server tells its strategy nothing of its end.
ENDS.append((LEGACY, with_checkpoints))


@pytest.mark.parametrize(("api", "play"), ENDS, ids=lambda one: getattr(one, "name", ""))
def test_a_run_whose_last_rounds_changed_nothing_says_so_at_its_end(
    api: Federation, play: Callable[..., None], tmp_path: Path, flower_log: pytest.LogCaptureFixture
) -> None:
    play(api, tmp_path)
    told = warnings(flower_log)[-1]
    assert told.startswith("The run has ended, and its last 2 rounds changed nothing")
    assert "6 times a failure" in told
    assert "the battery is empty" in told


@some_methods
def test_a_run_whose_last_round_moved_the_model_says_nothing(
    api: Federation, flower_log: pytest.LogCaptureFixture
) -> None:
    api.run(api.strategy(), failing_in(2), 3)
    assert "The run has ended" not in flower_log.text


@both_apis
def test_the_log_counts_the_rounds_in_a_row(
    api: Federation, flower_log: pytest.LogCaptureFixture
) -> None:
    strategy = api.strategy()
    arrays, _ = api.train_round(strategy, dict.fromkeys(NODES, good_client))
    for server_round in (2, 3):
        after, _ = api.train_round(strategy, dict.fromkeys(NODES, silent), arrays, server_round)
    assert payloads(after) == payloads(arrays)
    said = "round 3 has no reply that can be used; the model stays as it is, for 2 rounds now"
    assert said in flower_log.text


@every_method
def test_aggregating_before_a_round_says_so(api: Federation) -> None:
    with pytest.raises(RuntimeError, match=r"was called before configure_(fit|train)"):
        api.finish(api.strategy(), [], 1)
