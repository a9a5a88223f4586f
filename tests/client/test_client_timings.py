"""A client says where its time went, only where it is asked; nothing else changes."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from support.clients import (
    Arrays,
    NoisyClient,
    answer,
    arrays_of,
    context_of,
    message_to,
    metrics_of,
    request_entries,
    train_message,
)
from support.records import array_record, payloads
from support.small_model import MODEL

from fedpw_flwr import FedPWClient, numpy_client_app
from fedpw_flwr.client import timings
from fedpw_flwr.client.timings import TimingsMod, measured, phase
from fedpw_flwr.wire.timings import TIMINGS_RECORD, ClientTimings


class Clock:
    """Time that passes when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timings, "perf_counter", clock)
    return clock


def test_a_phase_inside_another_counts_for_itself_alone(clock: Clock) -> None:
    with measured() as seconds:
        with phase("train"):
            clock.now += 1
            with phase("adjust"):
                clock.now += 2
            clock.now += 4
            with phase("adjust"):
                clock.now += 8
        clock.now += 16  # between phases: nobody's
        with phase("upload"):
            clock.now += 32
    with phase("train"):
        clock.now += 64  # nobody measures
    assert seconds == {"train": 5.0, "adjust": 10.0, "upload": 32.0}


def test_a_phase_that_raises_is_counted_and_over(clock: Clock) -> None:
    @phase("train")
    def fail_after_a_second() -> None:
        clock.now += 1
        raise RuntimeError

    with measured() as seconds:
        with pytest.raises(RuntimeError):
            fail_after_a_second()
        clock.now += 2
        with phase("train"):
            clock.now += 4
    assert seconds == {"train": 5.0}


def test_another_thread_s_phases_are_its_own(clock: Clock) -> None:
    def elsewhere() -> None:
        with phase("evaluate"):
            clock.now += 1

    with measured() as seconds, phase("train"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert set(seconds) == {"train"}


ADJUST = request_entries(rate=0.3)


class SlowClient(NoisyClient):
    """Takes 30 ms to train and 20 ms to evaluate."""

    def fit(self, parameters: Arrays, config: dict[str, Any]) -> tuple[Arrays, int, dict[str, Any]]:
        time.sleep(0.03)
        return super().fit(parameters, config)

    def evaluate(
        self, parameters: Arrays, config: dict[str, Any]
    ) -> tuple[float, int, dict[str, Any]]:
        time.sleep(0.02)
        return super().evaluate(parameters, config)


def slow_app(wanted: bool) -> ClientApp:
    def client_fn(context: Context) -> FedPWClient:
        time.sleep(0.01)
        return FedPWClient(SlowClient(context.node_id))

    return numpy_client_app(client_fn, mods=[TimingsMod(lambda context: wanted)])


def timings_of(content: RecordDict) -> ClientTimings:
    return ClientTimings.decode(content.config_records[TIMINGS_RECORD])


def test_a_training_reply_says_where_the_time_went() -> None:
    started = time.perf_counter()
    reply = answer(slow_app(wanted=True), train_message(MODEL, ADJUST))
    took = time.perf_counter() - started

    seconds = timings_of(reply.content).seconds
    assert seconds["set_up"] >= 0.01
    assert seconds["train"] >= 0.03
    assert all(seconds[phase] > 0 for phase in ("download", "adjust", "upload"))
    assert seconds["evaluate"] == 0
    assert sum(seconds.values()) <= took


def test_an_evaluation_reply_says_so_too() -> None:
    reply = answer(slow_app(wanted=True), train_message(MODEL, {}, kind="evaluate"))
    seconds = timings_of(reply.content).seconds
    assert seconds["evaluate"] >= 0.02
    assert {phase for phase, value in seconds.items() if value} == {
        "set_up",
        "download",
        "evaluate",
    }


@pytest.mark.parametrize("entries", [{}, ADJUST], ids=["plain", "adjusted"])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_nothing_else_of_the_reply_changes(kind: str, entries: dict[str, bytes]) -> None:
    message = train_message(MODEL, entries, kind=kind)
    told, silent = (answer(slow_app(wanted), message) for wanted in (True, False))

    assert set(told.content) - set(silent.content) == {TIMINGS_RECORD}
    assert metrics_of(told) == metrics_of(silent)
    for name, record in silent.content.config_records.items():
        assert told.content.config_records[name] == record
    if kind == "train":
        assert payloads(arrays_of(told)) == payloads(arrays_of(silent))


def test_waiting_is_counted_from_the_message_s_creation() -> None:
    message = train_message(MODEL, {})
    time.sleep(0.05)
    assert 0.05 <= timings_of(answer(slow_app(wanted=True), message).content).waiting < 30


def test_a_clock_that_is_behind_the_server_s_makes_no_negative_waiting() -> None:
    message = train_message(MODEL, {})
    message.metadata.created_at = time.time() + 3600
    assert timings_of(answer(slow_app(wanted=True), message).content).waiting == 0


def test_replies_of_one_process_name_one_worker() -> None:
    app = slow_app(wanted=True)
    first, second = (
        timings_of(answer(app, train_message(MODEL, {}, node=node)).content) for node in (11, 12)
    )
    assert first.worker == second.worker


def test_a_client_that_fails_fails_as_it_would_without_timings() -> None:
    message = message_to(RecordDict({"arrays": array_record(MODEL), "a": ConfigRecord()}))
    message.content["b"] = ConfigRecord()
    with pytest.raises(ValueError, match="FedPW reads one"):
        slow_app(wanted=True)(message, context_of(11))
