"""Waiting has an end: the run stops with the reason, or goes on with the clients that are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from fedpw_flwr import TooFewClientsError
from fedpw_flwr.rounds.attendance import Attendance


def looks(*counts: int) -> Callable[[], list[int]]:
    """A federation that has so many clients at one look after the other, and then stays so."""
    each: Iterator[int] = iter(counts)
    return lambda: list(range(next(each, counts[-1])))


def test_enough_clients_are_not_waited_for() -> None:
    assert Attendance(0.0, "stop").wait(looks(3), 2) == [0, 1, 2]


def test_a_run_stops_and_says_how_many_were_there() -> None:
    with pytest.raises(TooFewClientsError, match=r"1 of 2 clients are there after 0.05 s"):
        Attendance(0.05, "stop").wait(looks(1), 2)


def test_a_run_goes_on_with_those_there_waits_no_second_time_and_ends_without_anybody() -> None:
    attendance = Attendance(0.05, "continue")
    assert attendance.wait(looks(1), 2) == [0]
    each = iter([[7], [7, 8]])
    assert attendance.wait(lambda: next(each), 2) == [7]
    assert attendance.wait(lambda: next(each), 2) == [7, 8]
    # Nobody for a moment does not end it.
    assert attendance.wait(looks(1), 2) == [0]
    assert attendance.wait(looks(0, 1), 2) == [0]
    with pytest.raises(TooFewClientsError, match="nobody is left to go on with"):
        attendance.wait(looks(0), 2)


@pytest.mark.parametrize(
    ("limit", "when", "error"),
    [(-1, "stop", ValueError), (float("nan"), "stop", ValueError), ("1", "stop", TypeError),
     (True, "stop", TypeError), (1.0, "wait", ValueError)],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(
    limit: object, when: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        Attendance(limit, when)
