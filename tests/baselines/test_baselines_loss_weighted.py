"""Claims about AFL, TERM and q-FedAvg: which loss they take, and whom they ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message
from support.baselines_federation import BUILDS, MODEL, Local, client_of, drawn, grid_of
from support.grid import Client, ClientsGrid, train_round
from support.records import array_record

from fedpw_flwr.baselines.screened import LossWeightedStrategy
from fedpw_flwr.rounds.faults import MissingLossError

NAMES = ("afl", "term", "qfedavg")
INITIAL = [0.5, 2.0, 1.0]

loss_weighted = pytest.mark.parametrize("name", NAMES)


def answers_the_question(does: Any, identity: int, initial_loss: float) -> Client:
    """A client that reports the loss of the model it was sent, if it is asked for it."""
    plain = client_of(does, identity)

    def answer(message: Message) -> list[Message]:
        replies = list(plain(message))
        if message.content["config"].get("report-initial-loss"):
            replies[0].content.metric_records["metrics"]["initial_loss"] = initial_loss
        return replies

    return answer


def reporting(initial_losses: list[float], does: Any = drawn) -> ClientsGrid:
    each = enumerate(initial_losses)
    return ClientsGrid({100 + one: answers_the_question(does, one, loss) for one, loss in each})


def test_these_are_all_that_need_a_loss() -> None:
    needing = [name for name, build in BUILDS.items() if build().needs_loss]
    assert sorted(needing) == sorted(NAMES)
    assert all(isinstance(BUILDS[name](), LossWeightedStrategy) for name in NAMES)


@loss_weighted
def test_clients_are_asked_only_for_the_loss_that_is_taken(name: str) -> None:
    asked = reporting(INITIAL)
    config = ConfigRecord({"note": 5})
    strategy = BUILDS[name](train_loss_key="initial_loss")
    messages = list(strategy.configure_train(1, array_record(MODEL), config, asked))
    for message in messages:
        assert dict(message.content["config"]) == {
            "note": 5,
            "server-round": 1,
            "report-initial-loss": True,
        }
    assert "report-initial-loss" not in config

    for key in ("train_loss", "loss"):
        messages = list(
            BUILDS[name](train_loss_key=key).configure_train(
                1, array_record(MODEL), ConfigRecord(), asked
            )
        )
        assert {tuple(message.content["config"]) for message in messages} == {("server-round",)}


@loss_weighted
def test_the_loss_of_the_received_model_is_what_counts(name: str) -> None:
    """The next weights are those of clients that report the same number as their training loss."""

    def reporting_locally(loss: list[float]) -> Callable[[int, int], Local]:
        return lambda client, now: Local(drawn(client, now).update, loss[client], 10)

    same = reporting_locally(INITIAL)
    another = reporting_locally([3.0 - loss for loss in INITIAL])
    plain, asking = BUILDS[name](), BUILDS[name](train_loss_key="initial_loss")
    grids = (
        ClientsGrid({100 + one: client_of(same, one) for one in range(3)}),
        reporting(INITIAL, another),
    )
    arrays = [array_record(MODEL)] * 2
    for server_round in (1, 2):
        metrics = []
        for place, strategy in enumerate((plain, asking)):
            arrays[place], said = train_round(strategy, grids[place], arrays[place], server_round)
            metrics.append(said)
        assert metrics[1]["client-weight"] == metrics[0]["client-weight"]
        assert metrics[1]["client-loss"] == INITIAL
    assert len(set(metrics[0]["client-weight"])) == 3
    # What the round records of local training stays what it was.
    assert metrics[1]["train_loss"] == pytest.approx(3.0 - sum(INITIAL) / 3)
    assert metrics[1]["initial_loss"] == pytest.approx(sum(INITIAL) / 3)


@loss_weighted
def test_clients_that_do_not_know_the_question_are_an_error_that_names_the_metric(
    name: str,
) -> None:
    strategy = BUILDS[name](train_loss_key="initial_loss")
    with pytest.raises(MissingLossError, match="'initial_loss'"):
        train_round(strategy, grid_of([drawn(0, 1)] * 3), array_record(MODEL))
