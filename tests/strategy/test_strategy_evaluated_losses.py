"""FedPW(loss_source="evaluate"): losses from federated evaluation, where training reports none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adjusting_clients import failing, silent
from support.federation import (
    APIS,
    BASELINES,
    MESSAGE,
    Federation,
    Round,
    answering,
    both_apis,
    known_reply,
    memory,
)
from support.grid import Client
from support.records import payloads
from support.small_model import evaluate_reply

from fedpw_flwr import FedPW, MissingLossError
from fedpw_flwr.algorithm.adjustment import drop_rates
from fedpw_flwr.rounds.faults import UnusableRepliesError
from fedpw_flwr.strategy.evaluated_losses import EvaluatedLosses

NODES = [21, 22, 23, 24]
EVALUATE: dict[str, Any] = {"loss_source": "evaluate", "evaluate_loss_key": "loss"}
FIRST, SECOND, THIRD = (
    {21: 1.5, 22: 0.5, 23: 2.5, 24: 1.0},
    {21: 1.0, 22: 0.25, 23: 2.0, 24: 0.5},
    {21: 0.75, 22: 0.125, 23: 1.5, 24: 0.375},
)


def _without_loss(message: Message) -> Message:
    reply = known_reply(message)
    del reply.content["metrics"]["train_loss"]
    return reply


mute = answering(_without_loss)
"""Trains, and reports no loss of it."""


def saying(loss: Any, **metrics: Any) -> Client:
    return lambda message: [
        evaluate_reply(message, **{"loss": loss, "accuracy": 0.5, "num-examples": 10, **metrics})
    ]


def play(
    api: Federation, strategy: Any, evaluations: Sequence[Mapping[int, Any]], first_round: int = 1
) -> list[Round]:
    """Rounds of training, each with an evaluation: what nodes say, a number being their loss."""
    rounds: list[Round] = []
    for number, told in enumerate(evaluations, first_round):
        arrays = rounds[-1].arrays if rounds else None
        rounds.append(api.train_round(strategy, dict.fromkeys(NODES, mute), arrays, number))
        clients = {
            node: said if callable(said) else saying(said)
            for node, said in ((node, told.get(node, silent)) for node in NODES)
        }
        api.evaluate_round(strategy, clients, number)
    return rounds


@both_apis
def test_clients_count_by_the_evaluation_of_the_round_before(api: Federation) -> None:
    """As clients that report the same numbers as their training losses."""
    found = play(api, api.strategy(**EVALUATE), [FIRST, SECOND, THIRD])
    strategy, arrays = api.strategy(), None
    for number, losses in enumerate((dict.fromkeys(NODES, 0.0), FIRST, SECOND), 1):
        clients = {
            node: answering(partial(known_reply, loss=loss)) for node, loss in losses.items()
        }
        arrays, expected = api.train_round(strategy, clients, arrays, number)
        metrics = found[number - 1].metrics
        told = {"fedpw-loss": list(losses.values())} if number > 1 else {}
        assert metrics.get("fedpw-loss") == told.get("fedpw-loss")
        assert payloads(found[number - 1].arrays) == payloads(arrays)
        for name in ("fedpw-client-id", "fedpw-weight", "fedpw-p", "fedpw-q", "fedpw-drop-rate"):
            assert metrics[name] == expected[name]


@both_apis
def test_losses_of_training_play_no_part(api: Federation) -> None:
    def odd(message: Message) -> Message:
        return known_reply(message, loss=float("nan"))

    strategies = [api.strategy(**EVALUATE) for _ in range(2)]
    expected = play(api, strategies[0], [FIRST, SECOND])
    arrays = None
    for number, told in enumerate((FIRST, SECOND), 1):
        clients = dict.fromkeys(NODES, answering(odd))
        arrays, metrics = api.train_round(strategies[1], clients, arrays, number)
        evaluation = {node: saying(loss) for node, loss in told.items()}
        api.evaluate_round(strategies[1], evaluation, number)
        assert api.counts(metrics) == (0, 0, 0)
        assert payloads(arrays) == payloads(expected[number - 1].arrays)


@both_apis
def test_clients_mask_with_rates_of_the_newest_evaluation(api: Federation) -> None:
    rounds = play(api, api.strategy(**EVALUATE, adjustment="client"), [FIRST, SECOND, THIRD])
    assert rounds[0].metrics["fedpw-drop-rate"] == [0.0] * 4
    for one, losses in ((rounds[1], FIRST), (rounds[2], SECOND)):
        expected = drop_rates(torch.tensor(list(losses.values()), dtype=torch.float64), 0.3)
        assert one.metrics["fedpw-drop-rate"] == expected.tolist()


@both_apis
@pytest.mark.parametrize("adjustment", ["server", "client"])
def test_a_client_that_was_not_evaluated_keeps_its_ratio_to_the_median(
    api: Federation, adjustment: str
) -> None:
    strategy = api.strategy(**EVALUATE, adjustment=adjustment)
    without = {node: loss for node, loss in SECOND.items() if node != 23}
    *_, last = play(api, strategy, [FIRST, without, THIRD])
    # Twice and a half the first median, 1, which has become 0.5.
    assert last.metrics["fedpw-loss"] == [1.0, 0.25, 1.25, 0.5]
    assert last.metrics["fedpw-drop-rate"][2] == min(last.metrics["fedpw-drop-rate"])


@both_apis
def test_a_client_that_was_never_evaluated_counts_as_the_median(api: Federation) -> None:
    told = {node: FIRST[node] for node in NODES if node != 24}
    strategy = api.strategy(**EVALUATE, adjustment="client")
    *_, last = play(api, strategy, [told, SECOND])
    assert last.metrics["fedpw-loss"] == [1.5, 0.5, 2.5, 1.5]
    assert last.metrics["fedpw-drop-rate"][3] == 0.3


def test_a_client_is_known_by_its_node_until_it_says_who_it_is() -> None:
    strategy = MESSAGE.strategy(**EVALUATE, fraction_train=0.5, seed=1)
    first, second = play(MESSAGE, strategy, [FIRST, SECOND])
    new = set(second.metrics["fedpw-client-id"]) - set(first.metrics["fedpw-client-id"])
    assert new
    expected = [FIRST[client + 10] for client in second.metrics["fedpw-client-id"]]
    assert second.metrics["fedpw-loss"] == expected


BROKEN: dict[str, Client] = {
    "NaN": saying(float("nan")),
    "infinite": saying(float("inf")),
    "negative": saying(-0.5),
    "with an odd metric": saying(9.0, accuracy=float("nan")),
    "with another metric": saying(9.0, f1=0.5),
    "raised": failing,
    "silent": silent,
}
OF_MESSAGES: dict[str, Client] = {
    "a list": saying([0.5, 0.5]),
    "missing": lambda message: [evaluate_reply(message)],
    "two records": lambda message: [
        Message(RecordDict({"a": MetricRecord(), "b": MetricRecord()}), reply_to=message)
    ],
}


@pytest.mark.parametrize(
    ("api", "kind"),
    [(api, kind) for api in APIS for kind in BROKEN] + [(MESSAGE, kind) for kind in OF_MESSAGES],
    ids=lambda one: one if isinstance(one, str) else one.name,
)
def test_a_broken_evaluation_costs_only_its_own_loss(api: Federation, kind: str) -> None:
    client = {**BROKEN, **OF_MESSAGES}[kind]
    *_, last = play(api, api.strategy(**EVALUATE), [FIRST, {**SECOND, 22: client}, THIRD])
    # Both medians are 1, so what the client told before stays.
    assert last.metrics["fedpw-loss"] == [1.0, 0.5, 2.0, 0.5]
    assert api.counts(last.metrics) == (0, 0, 0)


@both_apis
def test_nobody_tells_the_loss_of_another_client_while_that_is_silent(api: Federation) -> None:
    def impostor(message: Message) -> list[Message]:
        (reply,) = saying(0.0)(message)
        reply.content["identity"] = ConfigRecord({"client-id": 13})
        return [reply]

    told = {**SECOND, 22: impostor, 23: silent}
    *_, last = play(api, api.strategy(**EVALUATE), [FIRST, told, THIRD])
    # The median has become half of the first: both keep their ratios to it.
    assert last.metrics["fedpw-loss"] == [1.0, 0.25, 1.25, 0.5]


@both_apis
def test_an_evaluation_without_a_usable_reply_changes_nothing(api: Federation) -> None:
    strategy = api.strategy(**EVALUATE)
    *_, last = play(api, strategy, [FIRST, SECOND, dict.fromkeys(NODES, saying(-1.0)), {}, THIRD])
    assert last.metrics["fedpw-loss"] == list(SECOND.values())


@both_apis
def test_a_negative_loss_of_all_ends_the_run_with_the_fix(api: Federation) -> None:
    told = r"replies of round 1 have a negative loss.*the evaluate function.*evaluate_loss_key="
    with pytest.raises(UnusableRepliesError, match=f"(?s){told}"):
        play(api, api.strategy(**EVALUATE), [dict.fromkeys(NODES, saying(-2.0))])


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"test_logloss": 0.5, "accuracy": 0.5}, r"did you mean evaluate_loss_key='test_logloss'"),
        ({"train_loss": 0.5, "loss": 0.4}, r"did you mean evaluate_loss_key='loss'"),
        ({"accuracy": 0.5}, r"\['accuracy'\]\. .*evaluate function return it.*evaluate_loss_key="),
    ],
)
def test_a_missing_loss_of_all_ends_the_run_with_the_fix(metrics: Any, told: str) -> None:
    def client(message: Message) -> Any:
        return [evaluate_reply(message, **metrics, **{"num-examples": 10})]

    strategy = MESSAGE.strategy(loss_source="evaluate")
    said = f"no client reported its evaluation loss in round 1;.*{told}"
    with pytest.raises(MissingLossError, match=said):
        play(MESSAGE, strategy, [dict.fromkeys(NODES, client)])


@both_apis
def test_clients_that_cannot_evaluate_end_the_run_after_three_rounds(api: Federation) -> None:
    strategy = api.strategy(**EVALUATE)
    rounds = play(api, strategy, [dict.fromkeys(NODES, failing)] * 3)
    assert rounds[-1].metrics["fedpw-q"] == pytest.approx([0.25] * 4)
    with pytest.raises(MissingLossError, match=r"3 rounds.*Let the clients evaluate"):
        play(api, strategy, [{}], first_round=4)


@both_apis
def test_every_client_has_to_be_evaluated(api: Federation) -> None:
    with pytest.raises(ValueError, match=r"fraction_evaluate=0\.5 must be 1\.0"):
        api.strategy(**EVALUATE, fraction_evaluate=0.5)
    ablation = {"adapt_weights": False, "adjust_parameters": False}
    api.strategy(**EVALUATE, **ablation, fraction_evaluate=0.5)


def test_a_missing_training_loss_names_the_option_where_there_is_one() -> None:
    fix = 'FedPW(loss_source="evaluate")'
    for api in APIS:
        with pytest.raises(MissingLossError) as raised:
            api.train_round(api.strategy(), dict.fromkeys(NODES, mute))
        assert fix in str(raised.value)
    term = next(baseline for baseline in BASELINES if baseline.name == "term")
    with pytest.raises(MissingLossError) as raised:
        term.train_round(term.strategy(), dict.fromkeys(NODES, mute))
    assert "loss_source" not in str(raised.value)


@both_apis
def test_the_losses_are_part_of_the_saved_state(api: Federation) -> None:
    whole, cut = api.strategy(**EVALUATE), api.strategy(**EVALUATE)
    play(api, whole, [FIRST, SECOND])
    state, tensors = whole.saved_state()
    cut.restore_state(state, tensors)
    assert memory(cut) == memory(whole)
    # What earlier versions saved has none.
    del state["evaluated_losses"]
    cut.restore_state(state, tensors)
    assert cut.method.evaluated == EvaluatedLosses()


def test_an_old_checkpoint_is_still_gone_on_from_with_losses_of_training() -> None:
    assert "loss_source" not in FedPW().fingerprint()
    assert FedPW(loss_source="evaluate").fingerprint()["loss_source"] == "evaluate"


any_loss = st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.integers(0, 4), any_loss), max_size=4))
def test_whatever_was_told_the_losses_that_count_are_finite(told: list[dict[int, float]]) -> None:
    losses = EvaluatedLosses()
    for evaluation in told:
        losses = losses.after(evaluation)
        assert all(losses.counted(client, 99) == loss for client, loss in evaluation.items())
        assert all(0.0 <= losses.counted(client, 99) < math.inf for client in range(5))
    assert EvaluatedLosses.from_dict(losses.to_dict()) == losses
