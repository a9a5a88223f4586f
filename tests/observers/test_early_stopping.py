"""A run ends when a figure is good enough, or has not improved for long enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from flwr.app import MetricRecord
from support.grid import ClientsGrid
from support.records import array_record
from support.small_model import MODEL, good_client

from fedpw_flwr import FedPW
from fedpw_flwr.observers import EarlyStopping


def rounds_played(values: Sequence[float | None], **options: Any) -> tuple[int, str | None]:
    """Play rounds with these values after 0, 1, ... rounds; return the last, and why it is it."""
    watch = EarlyStopping(options.pop("metric", "accuracy"), **options)
    for server_round, value in enumerate(values):
        watch.on_round_end(server_round, {} if value is None else {watch.metric: value})
        if watch.stop_reason() is not None:
            return server_round, watch.stop_reason()
    return len(values) - 1, None


def test_a_run_ends_when_its_figure_reaches_the_target() -> None:
    assert rounds_played([0.1, 0.5, 0.9, 0.95], target=0.9) == (
        2,
        "accuracy is 0.9 in round 2 and has reached its target, 0.9",
    )
    assert rounds_played([0.1, 0.5, 0.8], target=0.9) == (2, None)
    assert rounds_played([3.0, 2.0, 0.5], metric="train/train_loss", target=2.5)[0] == 1


def test_a_run_ends_when_its_figure_has_not_improved_for_some_rounds() -> None:
    values = [0.1, 0.6, 0.5, 0.6, 0.55, 0.9]
    assert rounds_played(values, patience=3) == (
        4,
        "accuracy is 0.55 in round 4, 3 rounds after its best, 0.6 in round 1 (patience 3)",
    )
    assert rounds_played(values, patience=4) == (5, None)
    assert rounds_played([2.0, 1.0, 1.5], metric="loss/mnist", patience=1)[0] == 2


def test_no_run_ends_before_its_fewest_rounds_or_without_its_figure() -> None:
    assert rounds_played([0.9, 0.9, 0.9, 0.9], target=0.5)[0] == 1
    assert rounds_played([0.9, 0.9], target=0.5, min_rounds=0)[0] == 0
    assert rounds_played([0.9, 0.8, 0.7, 0.6, 0.5], patience=1, min_rounds=3)[0] == 3
    assert rounds_played([0.5, None, None, None, 0.4], patience=2)[0] == 4
    assert rounds_played([0.5, 0.4, 0.3]) == (2, None)


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        *((name, True) for name in ("train/train_loss", "loss/oslo", "evaluate/perplexity")),
        *((name, True) for name in ("std_accuracy", "clients/std", "evaluate/val-loss", "Loss")),
        *((name, True) for name in ("evaluate/mse", "evaluate/cross_entropy")),
        ("evaluate/fairness-entropy", False),
        *((name, False) for name in ("accuracy/rectangle", "accuracy/glossy", "accuracy/loss")),
        *((name, False) for name in ("evaluate/accuracy", "clients/worst_10", "worst_accuracy")),
    ],
)
def test_whether_lower_is_better_is_said_by_words_and_not_by_a_domains_name(
    metric: str, lower: bool
) -> None:
    assert (rounds_played([0.5, 0.4], metric=metric, target=0.45) == (1, None)) != lower


def test_a_figure_that_there_is_not_is_told_with_those_there_are(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    watch = EarlyStopping("acuracy", target=0.9)
    for server_round in range(3):
        watch.on_round_end(server_round, {"train/train_loss": 1.0, "accuracy": 0.5})
    assert flower_log.text.count("no figure 'acuracy'; it has: train/train_loss, accuracy") == 1


def test_which_way_is_better_can_be_said() -> None:
    for lower in (True, False):
        said = {"metric": "evaluate/regret", "target": 0.45, "lower_is_better": lower}
        assert (rounds_played([0.5, 0.4], **said) == (1, None)) != lower


@pytest.mark.parametrize("setting", [{"patience": 0}, {"patience": 1.5}, {"min_rounds": -1}])
def test_rounds_are_whole_and_at_least_one(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must be a whole number"):
        EarlyStopping("accuracy", **setting)


def test_a_target_is_a_number() -> None:
    target: Any = "0.9"
    with pytest.raises(ValueError, match="target must be a number"):
        EarlyStopping("accuracy", target=target)


@pytest.mark.parametrize("metric", ["evaluate/accuracy", "at_server"])
def test_what_clients_or_the_server_measure_ends_a_real_run(metric: str) -> None:
    clients = dict.fromkeys([11, 12, 13], good_client)
    strategy = FedPW(observers=[EarlyStopping(metric, patience=2)])
    result = strategy.start(
        *(ClientsGrid(clients), array_record(MODEL), 9),
        evaluate_fn=lambda now, arrays: MetricRecord({"at_server": math.nan if now < 2 else 0.5}),
    )
    # The clients' figure is the same in all rounds, from the first on.
    assert [*result.train_metrics_clientapp][-1] == (3 if metric.startswith("evaluate") else 4)
