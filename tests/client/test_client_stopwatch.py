"""The stopwatch: what is inside a phase counts once, and nobody measures without being asked."""

from __future__ import annotations

import threading

import pytest

from fedpw_flwr.client.timings import Stopwatch, phase


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@phase("train")
def fail_after_a_second(clock: Clock) -> None:
    clock.now += 1
    raise RuntimeError


def test_a_phase_inside_another_counts_for_itself_alone(clock: Clock) -> None:
    stopwatch = Stopwatch(clock)
    with stopwatch.running():
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
    assert stopwatch.seconds == {"train": 5.0, "adjust": 10.0, "upload": 32.0}


def test_a_phase_that_raises_is_counted_and_over(clock: Clock) -> None:
    stopwatch = Stopwatch(clock)
    with stopwatch.running():
        with pytest.raises(RuntimeError):
            fail_after_a_second(clock)
        clock.now += 2
        with phase("train"):
            clock.now += 4
    assert stopwatch.seconds == {"train": 5.0}


def test_phases_count_for_nobody_when_no_stopwatch_runs(clock: Clock) -> None:
    stopwatch = Stopwatch(clock)
    with stopwatch.running(), phase("train"):
        clock.now += 1
    with phase("train"):
        clock.now += 1
    assert stopwatch.seconds == {"train": 1.0}


def test_another_thread_s_phases_are_its_own(clock: Clock) -> None:
    stopwatch = Stopwatch(clock)

    def elsewhere() -> None:
        with phase("evaluate"):
            clock.now += 1

    with stopwatch.running(), phase("train"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert set(stopwatch.seconds) == {"train"}
