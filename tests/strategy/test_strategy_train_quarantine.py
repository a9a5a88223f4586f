"""A broken training reply costs only itself: not the run, not a number of the others' round."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
from broken_replies import BROKEN_REPLIES, STRANGER, BrokenReply
from federation import MODEL, good_client, stray, train_reply
from flwr.app import ArrayRecord, Error, Message, MetricRecord
from support.grid import Client, ClientsGrid, ask, train_round
from support.records import array_record, payloads

from fedpw_flwr import FedPW

NODES = [11, 12, 13, 14, 15]
BAD = 13
OWN_COUNTS = ("fedpw-quarantined", "fedpw-failed", "fedpw-empty")


def silent_client(message: Message) -> list[Message]:
    return []


def broken_client(kind: BrokenReply) -> Client:
    return lambda message: kind.arrives(message, train_reply(message))


def grid_with(client: Client, at: int = BAD) -> ClientsGrid:
    return ClientsGrid({**dict.fromkeys(NODES, good_client), at: client})


def after_two_good_rounds() -> tuple[FedPW, ArrayRecord]:
    strategy, arrays = FedPW(), array_record(MODEL)
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    for server_round in (1, 2):
        arrays, _ = train_round(strategy, grid, arrays, server_round)
    return strategy, arrays


def others(metrics: MetricRecord) -> dict[str, object]:
    return {key: value for key, value in metrics.items() if key not in OWN_COUNTS}


@pytest.mark.parametrize("kind", BROKEN_REPLIES)
def test_broken_reply_costs_only_itself(kind: str, flower_log: pytest.LogCaptureFixture) -> None:
    broken = BROKEN_REPLIES[kind]
    strategy, arrays = after_two_good_rounds()
    without = copy.deepcopy(strategy)

    expected, expected_metrics = train_round(without, grid_with(silent_client), arrays, 3)
    flower_log.clear()
    new_arrays, metrics = train_round(strategy, grid_with(broken_client(broken)), arrays, 3)

    assert payloads(new_arrays) == payloads(expected)
    assert strategy.state == without.state
    assert others(metrics) == others(expected_metrics)
    assert metrics["fedpw-client-id"] == [11, 12, 14, 15]
    assert metrics["fedpw-failed"] == int(broken.failed)
    assert metrics["fedpw-quarantined"] == int(not broken.failed)

    sender = STRANGER if kind == "node that was not asked" else BAD
    told = [record.getMessage() for record in flower_log.records if record.levelname == "WARNING"]
    if f"node {BAD} has no reply here" in told[-1]:
        assert sender != BAD
        told.pop()
    assert len(told) == 1
    assert "round 3" in told[0]
    assert f"node {sender}" in told[0]
    assert ("failed" if broken.failed else "quarantined") in told[0]
    assert re.search(broken.reason, told[0], re.DOTALL)


@pytest.mark.parametrize("kind", BROKEN_REPLIES)
def test_broken_reply_in_the_first_round_enters_no_baseline(kind: str) -> None:
    strategy, without = FedPW(), FedPW()
    arrays, expected = array_record(MODEL), array_record(MODEL)
    first = grid_with(broken_client(BROKEN_REPLIES[kind]))
    arrays, _ = train_round(strategy, first, arrays, 1)
    expected, _ = train_round(without, grid_with(silent_client), expected, 1)
    everyone = ClientsGrid(dict.fromkeys(NODES, good_client))
    for server_round in (2, 3):
        arrays, _ = train_round(strategy, everyone, arrays, server_round)
        expected, _ = train_round(without, everyone, expected, server_round)
    assert payloads(arrays) == payloads(expected)
    assert strategy.state == without.state


def test_broken_client_is_welcome_again_once_it_is_well() -> None:
    strategy, arrays = after_two_good_rounds()
    nan = broken_client(BROKEN_REPLIES["NaN entry"])
    arrays, _ = train_round(strategy, grid_with(nan), arrays, 3)
    _, metrics = train_round(strategy, grid_with(good_client), arrays, 4)
    assert metrics["fedpw-client-id"] == NODES
    assert metrics["fedpw-quarantined"] == 0


def test_client_that_names_itself_is_named_in_the_log(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    def client(message: Message) -> list[Message]:
        loss = -1.0 if message.metadata.dst_node_id == BAD else 1.0
        return [train_reply(message, loss=loss, client_id=message.metadata.dst_node_id - 10)]

    strategy = FedPW()
    train_round(strategy, ClientsGrid(dict.fromkeys(NODES, client)), array_record(MODEL), 1)
    assert re.search(rf"round 1, client 3 \(node {BAD}\) quarantined", flower_log.text)


def test_many_broken_replies_in_one_round_cost_only_themselves() -> None:
    strategy, arrays = after_two_good_rounds()
    without = copy.deepcopy(strategy)
    crowd = {100 + i: broken_client(kind) for i, kind in enumerate(BROKEN_REPLIES.values())}
    crowded = ClientsGrid({**dict.fromkeys(NODES, good_client), **crowd})
    quiet = ClientsGrid({**dict.fromkeys(NODES, good_client)})
    new_arrays, metrics = train_round(strategy, crowded, arrays, 3)
    expected, expected_metrics = train_round(without, quiet, arrays, 3)
    assert payloads(new_arrays) == payloads(expected)
    assert strategy.state == without.state
    assert others(metrics) == others(expected_metrics)
    failed = sum(kind.failed for kind in BROKEN_REPLIES.values())
    assert metrics["fedpw-failed"] == failed
    assert metrics["fedpw-quarantined"] == len(BROKEN_REPLIES) - failed


@pytest.mark.parametrize(
    "kind", ["NaN entry", "wrong shape", "client raised", "truncated payload", "no ArrayRecord"]
)
def test_when_every_reply_is_broken_nothing_moves(
    kind: str, flower_log: pytest.LogCaptureFixture
) -> None:
    strategy, arrays = after_two_good_rounds()
    before = copy.deepcopy(strategy.state)
    grid = ClientsGrid(dict.fromkeys(NODES, broken_client(BROKEN_REPLIES[kind])))
    new_arrays, metrics = train_round(strategy, grid, arrays, 3)
    assert payloads(new_arrays) == payloads(arrays)
    assert strategy.state == before
    assert metrics["fedpw-quarantined"] + metrics["fedpw-failed"] == 5
    assert "fedpw-weight" not in metrics
    assert "no reply that can be used" in flower_log.text
    train_round(strategy, ClientsGrid(dict.fromkeys(NODES, good_client)), new_arrays, 4)


def test_when_nobody_answers_nothing_moves() -> None:
    strategy, arrays = after_two_good_rounds()
    before = copy.deepcopy(strategy.state)
    grid = ClientsGrid(dict.fromkeys(NODES, silent_client))
    new_arrays, metrics = train_round(strategy, grid, arrays, 3)
    assert payloads(new_arrays) == payloads(arrays)
    assert strategy.state == before
    assert metrics["fedpw-quarantined"] == 0


def test_run_in_which_nobody_ever_trains_returns_the_initial_model() -> None:
    def client(message: Message) -> list[Message]:
        raise RuntimeError("no data")

    grid = ClientsGrid(dict.fromkeys(NODES, client))
    result = FedPW().start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=2)
    assert payloads(result.arrays) == payloads(array_record(MODEL))
    assert result.train_metrics_clientapp[2]["fedpw-failed"] == 5


def test_lost_node_is_named_though_the_superlink_answers_for_it(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    # Flower reports a node that went away with itself (id 1) as the sender.
    def client(message: Message) -> list[Message]:
        lost = Message(Error(5, "Node Unavailable"), reply_to=message)
        lost.metadata.__dict__["_src_node_id"] = 1
        return [lost]

    strategy, arrays = after_two_good_rounds()
    _, metrics = train_round(strategy, grid_with(client), arrays, 3)
    assert metrics["fedpw-failed"] == 1
    assert re.search(rf"node {BAD} failed: error 5", flower_log.text)


def _reversed(replies: list[Message]) -> list[Message]:
    return replies[::-1]


@pytest.mark.parametrize("arrange", [list, _reversed])
def test_the_same_reply_twice_counts_once(
    arrange: Callable[[list[Message]], list[Message]],
) -> None:
    def client(message: Message) -> list[Message]:
        return [train_reply(message), train_reply(message)]

    strategy, arrays = after_two_good_rounds()
    once = copy.deepcopy(strategy)
    grid = grid_with(client)
    grid.arrange = arrange
    new_arrays, metrics = train_round(strategy, grid, arrays, 3)
    expected, _ = train_round(once, grid_with(good_client), arrays, 3)
    assert payloads(new_arrays) == payloads(expected)
    assert strategy.state == once.state
    assert metrics["fedpw-client-id"] == NODES
    assert metrics["fedpw-quarantined"] == 1


def test_two_different_replies_of_one_client_count_alike_in_any_order() -> None:
    def client(message: Message) -> list[Message]:
        return [train_reply(message, loss=0.4), train_reply(message, loss=2.4)]

    strategy, arrays = after_two_good_rounds()
    other = copy.deepcopy(strategy)
    forwards, backwards = grid_with(client), grid_with(client)
    backwards.arrange = _reversed
    new_arrays, metrics = train_round(strategy, forwards, arrays, 3)
    expected, expected_metrics = train_round(other, backwards, arrays, 3)
    assert metrics["fedpw-quarantined"] >= 1
    assert metrics == expected_metrics
    assert payloads(new_arrays) == payloads(expected)
    assert strategy.state == other.state


@pytest.mark.parametrize("arrange", [list, _reversed])
@pytest.mark.parametrize("impostor", [2, 99])
def test_identity_stays_with_the_node_that_had_it(
    impostor: int, arrange: Callable[[list[Message]], list[Message]]
) -> None:
    def named(message: Message) -> list[Message]:
        return [train_reply(message, client_id=message.metadata.dst_node_id - 10)]

    def thief(message: Message) -> list[Message]:
        return [train_reply(message, client_id=BAD - 10)]

    strategy = FedPW()
    honest = ClientsGrid(dict.fromkeys(NODES, named))
    arrays, _ = train_round(strategy, honest, array_record(MODEL), 1)
    without = copy.deepcopy(strategy)
    robbed = ClientsGrid({**dict.fromkeys(NODES, named), impostor: thief}, arrange=arrange)
    new_arrays, metrics = train_round(strategy, robbed, arrays, 2)
    expected, expected_metrics = train_round(without, honest, arrays, 2)
    assert payloads(new_arrays) == payloads(expected)
    assert strategy.state == without.state
    assert metrics["fedpw-quarantined"] == 1
    assert others(metrics) == others(expected_metrics)


def test_client_that_returns_on_another_node_keeps_its_memory() -> None:
    def client(message: Message) -> list[Message]:
        return [train_reply(message, loss=1.0, client_id=message.metadata.dst_node_id % 10)]

    moved, stayed = FedPW(), FedPW()
    arrays, _ = train_round(
        moved, ClientsGrid(dict.fromkeys([11, 12, 13], client)), array_record(MODEL), 1
    )
    train_round(stayed, ClientsGrid(dict.fromkeys([11, 12, 13], client)), array_record(MODEL), 1)
    assert moved.state == stayed.state
    _, metrics = train_round(moved, ClientsGrid(dict.fromkeys([11, 12, 53], client)), arrays, 2)
    assert metrics["fedpw-client-id"] == [1, 2, 3]
    assert sorted(moved.state.loss.clients) == [1, 2, 3]


def test_reply_from_an_earlier_rounds_node_is_set_aside() -> None:
    strategy, arrays = after_two_good_rounds()
    without = copy.deepcopy(strategy)
    small = ClientsGrid(dict.fromkeys(NODES[:4], good_client))
    replies = ask(strategy, small, arrays, 3)
    late = [stray(replies[0], NODES[4])]
    new_arrays, metrics = strategy.aggregate_train(3, replies + late)
    expected, _ = train_round(without, small, arrays, 3)
    assert new_arrays is not None
    assert metrics is not None
    assert payloads(new_arrays) == payloads(expected)
    assert metrics["fedpw-quarantined"] == 1


def test_reported_metric_that_is_nan_does_not_cost_the_clients_model() -> None:
    def client(message: Message) -> list[Message]:
        norm = float("nan") if message.metadata.dst_node_id == BAD else 2.0
        return [train_reply(message, **{"grad-norm": norm})]

    strategy = FedPW()
    grid = ClientsGrid(dict.fromkeys(NODES, client))
    _, metrics = train_round(strategy, grid, array_record(MODEL), 1)
    assert metrics["fedpw-client-id"] == NODES
    assert metrics["train_loss"] == metrics["train_loss"]
