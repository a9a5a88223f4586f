"""One broken reply costs only itself, whatever is wrong with it, wherever updates are adjusted.

Whether it breaks before the client adjusts its update or on its way: the round is that in which the
client is silent, the model is finite, and the log names the culprit.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.common import FitRes, ndarrays_to_parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adjusting_clients import following, silent
from support.broken_replies import (
    BROKEN_OF_NUMPY_CLIENTS,
    BROKEN_REPLIES,
    IN_MESSAGES_ONLY,
    LEGACY_REASONS,
    STRANGER,
    BrokenReply,
)
from support.federation import (
    APIS,
    LEGACY,
    MESSAGE,
    MODEL,
    PLACEMENTS,
    Answers,
    Federation,
    Round,
    assert_sound,
    both_apis,
    every_method,
    everyone,
    honest,
    known_reply,
    memory,
    placements,
    warnings,
)
from support.grid import Client, ClientsGrid, ask
from support.legacy_federation import fit_result, fit_round
from support.legacy_federation import plain_clients as legacy_clients
from support.records import array_record, payloads

from fedpw_flwr.wire.adjustment import NEEDS_DENSE

pytestmark = pytest.mark.filterwarnings("ignore:Reading `.npy`")

NODES = list(range(11, 17))
BAD = 13
REST = [node - 10 for node in NODES if node != BAD]
KINDS = {**BROKEN_REPLIES, **BROKEN_OF_NUMPY_CLIENTS}


def breaks_before_it_adjusts(kind: BrokenReply) -> Client:
    """The train function returns the broken reply, to the mod that adjusts updates."""
    return following(lambda message: kind.arrives(message, known_reply(message))[0])


def breaks_on_the_way(kind: BrokenReply) -> Client:
    """The reply was adjusted as asked; something happens to it afterwards."""

    def client(message: Message) -> list[Message]:
        [good] = honest(message)
        return kind.arrives(message, good)

    return client


ROUTES: dict[str, Callable[[BrokenReply], Client]] = {
    "before it adjusts": breaks_before_it_adjusts,
    "on the way": breaks_on_the_way,
}


@cache
def _two_rounds(api: Federation, placement: str) -> tuple[Any, ArrayRecord]:
    strategy = api.strategy(device="cpu", **PLACEMENTS[placement])
    return strategy, api.train_rounds(strategy, everyone(NODES), 2)[-1].arrays


def after_two_rounds(api: Federation, placement: str = "server") -> tuple[Any, ArrayRecord]:
    """A federation that masked once: from here on there is a consensus, too."""
    strategy, arrays = _two_rounds(api, placement)
    return copy.deepcopy(strategy), arrays


@cache
def without_the_bad(api: Federation, placement: str) -> tuple[Round, Any]:
    """The third round where the client at BAD gives no answer, and what is remembered of it."""
    strategy, arrays = after_two_rounds(api, placement)
    expected = api.train_round(strategy, everyone(NODES, {BAD: silent}), arrays, 3)
    return expected, memory(strategy)


def kinds_of(api: Federation) -> list[str]:
    return [kind for kind in KINDS if api is MESSAGE or kind not in IN_MESSAGES_ONLY]


WAYS = {"server": "on the way", "client": "before it adjusts", "packed": "on the way"}
"""Where a reply breaks, by placement: each of both, and not all of them together."""

CASES = [
    pytest.param(api, placement, route, kind, id=f"{api.name}-{placement}-{route}-{kind}")
    for api in APIS
    for placement, route in WAYS.items()
    for kind in kinds_of(api)
]


@pytest.mark.parametrize(("api", "placement", "route", "kind"), CASES)
def test_broken_reply_costs_only_itself(
    api: Federation, placement: str, route: str, kind: str, flower_log: pytest.LogCaptureFixture
) -> None:
    expected, remembered = without_the_bad(api, placement)
    strategy, arrays = after_two_rounds(api, placement)
    flower_log.clear()
    culprit = ROUTES[route](KINDS[kind])
    new_arrays, metrics = api.train_round(strategy, everyone(NODES, {BAD: culprit}), arrays, 3)

    assert_sound(new_arrays)
    assert payloads(new_arrays) == payloads(expected.arrays)
    assert memory(strategy) == remembered
    assert api.decided(metrics) == api.decided(expected.metrics)
    assert metrics["fedpw-client-id"] == REST
    failed = KINDS[kind].failed
    if route == "on the way":
        assert api.counts(metrics) == (int(not failed), int(failed), 0)
    assert sum(api.counts(metrics)) == 1
    said = re.compile(r"(quarantined|failed): .")
    [told] = [line for line in warnings(flower_log) if said.search(line)]
    node = STRANGER if kind == "node that was not asked" else BAD
    assert f"round 3, client {BAD - 10} (node {node})" in told
    if placement == "server":
        reason = LEGACY_REASONS.get(kind) if api is LEGACY else None
        assert re.search(reason or KINDS[kind].reason, told, re.DOTALL)


@every_method
@pytest.mark.parametrize("kind", ["NaN entry", "client raised"])
@pytest.mark.parametrize("when", ["from the start", "later"])
def test_it_enters_no_memory_whatever_the_method(api: Federation, kind: str, when: str) -> None:
    def model_after(culprit: Client) -> tuple[Any, ...]:
        strategy = api.strategy()
        if when == "later":
            arrays = api.train_rounds(strategy, everyone(NODES), 2)[-1].arrays
        else:
            arrays = array_record(MODEL)
        first = api.train_round(strategy, everyone(NODES, {BAD: culprit}), arrays, 3)
        arrays, metrics = api.train_round(strategy, everyone(NODES), first.arrays, 4)
        return payloads(arrays), metrics, memory(strategy), api.decided(first.metrics)

    assert model_after(breaks_on_the_way(KINDS[kind])) == model_after(silent)


@both_apis
@pytest.mark.parametrize(
    "kind", ["NaN entry", "no loss", "truncated payload", "client raised", "client-id is text"]
)
def test_where_all_replies_are_broken_the_model_keeps_its_bytes_and_the_run_goes_on(
    api: Federation, kind: str, flower_log: pytest.LogCaptureFixture
) -> None:
    strategy, arrays = after_two_rounds(api, "packed")
    before = memory(strategy)
    all_bad = dict.fromkeys(NODES, breaks_before_it_adjusts(KINDS[kind]))
    new_arrays, metrics = api.train_round(strategy, all_bad, arrays, 3)
    assert payloads(new_arrays) == payloads(arrays)
    assert memory(strategy) == before
    assert sum(api.counts(metrics)) == len(NODES)
    assert "fedpw-weight" not in metrics
    assert "no reply that can be used" in flower_log.text
    _, metrics = api.train_round(strategy, everyone(NODES), new_arrays, 4)
    assert metrics["fedpw-client-id"] == [node - 10 for node in NODES]


@every_method
@pytest.mark.parametrize("client", [silent, breaks_on_the_way(KINDS["client raised"])])
def test_where_nobody_can_be_used_the_model_and_the_memory_stay(
    api: Federation, client: Client
) -> None:
    strategy = api.strategy()
    arrays = api.train_rounds(strategy, everyone(NODES), 2)[-1].arrays
    before = memory(strategy)
    new_arrays, metrics = api.train_round(strategy, dict.fromkeys(NODES, client), arrays, 3)
    assert payloads(new_arrays) == payloads(arrays)
    assert memory(strategy) == before
    assert api.counts(metrics) == (0, 0 if client is silent else len(NODES), 0)
    assert api.decided(metrics) == {}


def _no_loss(message: Message) -> list[Message]:
    reply = known_reply(message)
    del reply.content.metric_records["metrics"]["train_loss"]
    return [reply]


def _behind_a_clipping_mod(message: Message) -> list[Message]:
    return [Message(Error(2, f"ValueError: {NEEDS_DENSE}"), reply_to=message)]


def _as_a_client_app_function_does(message: Message) -> list[Message]:
    raise KeyError("arrays")


@both_apis
@pytest.mark.parametrize("last", [_no_loss, _behind_a_clipping_mod, _as_a_client_app_function_does])
def test_the_only_one_to_answer_cannot_end_a_run_that_went_well(
    api: Federation, last: Client
) -> None:
    strategy, arrays = after_two_rounds(api)
    lonely = {**dict.fromkeys(NODES, silent), BAD: last}
    new_arrays, metrics = api.train_round(strategy, lonely, arrays, 3)
    assert payloads(new_arrays) == payloads(arrays)
    assert sum(api.counts(metrics)) == 1


@both_apis
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_broken_replies_together_cost_only_themselves(
    api: Federation, data: st.DataObject
) -> None:
    usual = st.sampled_from(kinds_of(api))
    kinds = data.draw(st.dictionaries(st.sampled_from(NODES), usual, max_size=len(NODES) - 1))
    strategy, arrays = after_two_rounds(api)
    without = copy.deepcopy(strategy)
    broken = {node: breaks_on_the_way(KINDS[kind]) for node, kind in kinds.items()}
    new_arrays, metrics = api.train_round(strategy, everyone(NODES, broken), arrays, 3)
    absent = everyone(NODES, dict.fromkeys(kinds, silent))
    expected, expected_metrics = api.train_round(without, absent, arrays, 3)
    assert payloads(new_arrays) == payloads(expected)
    assert memory(strategy) == memory(without)
    assert api.decided(metrics) == api.decided(expected_metrics)
    assert sum(api.counts(metrics)) == len(kinds)


@every_method
def test_no_bit_depends_on_the_order_of_replies(api: Federation) -> None:
    def turned(answers: Answers) -> Answers:
        return [*answers[1::2], *answers[::2]]

    strategy, other = api.strategy(), api.strategy()
    arrays = other_arrays = array_record(MODEL)
    for server_round in (1, 2, 3):
        arrays, metrics = api.train_round(strategy, everyone(NODES), arrays, server_round)
        other_arrays, other_metrics = api.train_round(
            other, everyone(NODES), other_arrays, server_round, turned
        )
        assert payloads(other_arrays) == payloads(arrays)
        assert other_metrics == metrics
        assert_sound(arrays)


# What only messages can do


def test_lost_node_is_named_though_the_superlink_answers_for_it(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    """Flower reports a node that went away with itself (id 1) as the sender."""

    def lost(message: Message) -> list[Message]:
        reply = Message(Error(5, "Node Unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 1
        return [reply]

    strategy, arrays = after_two_rounds(MESSAGE)
    _, metrics = MESSAGE.train_round(strategy, everyone(NODES, {BAD: lost}), arrays, 3)
    assert metrics["fedpw-failed"] == 1
    assert re.search(rf"node {BAD}\) failed: error 5", flower_log.text)


@placements
def test_answer_to_the_last_rounds_message_does_not_count_in_this_one(
    placement: str, flower_log: pytest.LogCaptureFixture
) -> None:
    strategy, grid = MESSAGE.strategy(**PLACEMENTS[placement]), ClientsGrid(everyone(NODES))
    arrays = array_record(MODEL)
    for server_round in (1, 2):
        replies = ask(strategy, grid, arrays, server_round)
        arrays, _ = strategy.aggregate_train(server_round, replies)
    [late] = [reply for reply in replies if reply.metadata.src_node_id == BAD]
    fresh = ask(strategy, grid, arrays, 3)
    in_time = [reply for reply in fresh if reply.metadata.src_node_id != BAD]
    expected, _ = copy.deepcopy(strategy).aggregate_train(3, in_time)
    flower_log.clear()
    new_arrays, metrics = strategy.aggregate_train(3, [*in_time, late])
    assert payloads(new_arrays) == payloads(expected)
    assert metrics["fedpw-quarantined"] == 1
    assert f"client {BAD - 10} (node {BAD}) quarantined" in flower_log.text


@both_apis
@pytest.mark.parametrize("placement", ["client", "packed"])
def test_last_rounds_update_in_this_rounds_reply_is_set_aside(
    api: Federation, placement: str, flower_log: pytest.LogCaptureFixture
) -> None:
    """Where clients adjust, they say to what request; elsewhere it is an update like any other."""
    kept: list[RecordDict] = []

    def stale(message: Message) -> list[Message]:
        kept.extend(reply.content for reply in honest(message))
        return [Message(kept[max(0, len(kept) - 2)], reply_to=message)]

    strategy = api.strategy(**PLACEMENTS[placement])
    rounds = api.train_rounds(strategy, everyone(NODES, {BAD: stale}), 3)
    assert rounds[-1].metrics["fedpw-quarantined"] == 1
    assert f"round 3, client {BAD - 10} (node {BAD}) quarantined: it " in flower_log.text


@pytest.mark.parametrize("losses", [(0.4, 0.4), (0.4, 2.4)])
def test_two_replies_of_one_client_count_once_and_alike_in_any_order(
    losses: tuple[float, ...],
) -> None:
    def played(losses: tuple[float, ...], arrange: Callable[[Answers], Answers]) -> list[Any]:
        def client(message: Message) -> list[Message]:
            return [known_reply(message, loss=loss) for loss in losses]

        strategy, arrays = after_two_rounds(MESSAGE)
        clients = everyone(NODES, {BAD: client})
        arrays, metrics = MESSAGE.train_round(strategy, clients, arrays, 3, arrange)
        assert metrics["fedpw-quarantined"] == len(losses) - 1
        return [payloads(arrays), memory(strategy)]

    forwards = played(losses, list)
    assert played(losses, lambda answers: answers[::-1]) == forwards
    assert forwards in [played((loss,), list) for loss in losses]


# What only lists of parameters can do


def test_results_are_held_against_names_that_look_like_indices() -> None:
    """A surplus array must not hide behind the name of another."""
    bias = MODEL["body.bias"]

    def results_of(names: str) -> Callable[[int, Any], FitRes]:
        return lambda node, ins: fit_result(dict.fromkeys(names, bias))

    results = {**dict.fromkeys(NODES, results_of("ab")), BAD: results_of("abc")}
    proxies = legacy_clients(NODES, results)
    strategy = LEGACY.strategy(array_names=["0", "2"])
    _, metrics = fit_round(strategy, proxies, ndarrays_to_parameters([bias] * 2))
    assert metrics["fedpw-quarantined"] == 1
