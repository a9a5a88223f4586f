"""Timings on the wire: read back as sent, and refused where they can be no durations."""

from __future__ import annotations

import math
from typing import Any

import pytest
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from fedpw_flwr.wire.timings import CLIENT_PHASES, ClientTimings

durations = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
odd_values = st.one_of(
    st.text(max_size=5),
    st.binary(max_size=5),
    st.booleans(),
    st.floats(),
    st.integers(-(2**63), 2**64 - 1),
    st.lists(st.floats(), max_size=3),
)


@given(st.text(min_size=1, max_size=64), durations, st.lists(durations, min_size=6, max_size=6))
def test_timings_come_back_as_they_were_sent(
    worker: str, waiting: float, seconds: list[float]
) -> None:
    timings = ClientTimings(worker, waiting, dict(zip(CLIENT_PHASES, seconds, strict=True)))
    assert ClientTimings.decode(timings.encode()) == timings


def test_a_phase_that_is_not_named_took_no_time_and_one_of_a_later_version_is_passed_over() -> None:
    timings = ClientTimings.decode(ConfigRecord({"worker": "w", "train": 2.0, "dream": 4.0}))
    assert timings.seconds == {phase: 2.0 * (phase == "train") for phase in CLIENT_PHASES}
    assert (timings.waiting, timings.busy) == (0.0, 2.0)


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"worker": ""},
        {"worker": "w" * 65},
        {"worker": 7},
        {"worker": "w", "train": -1.0},
        {"worker": "w", "train": math.nan},
        {"worker": "w", "train": math.inf},
        {"worker": "w", "train": True},
        {"worker": "w", "train": "long"},
        {"worker": "w", "upload": [1.0]},
        {"worker": "w", "waiting": -0.1},
    ],
)
def test_nonsense_is_refused(entries: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the timings"):
        ClientTimings.decode(ConfigRecord(entries))


@given(st.dictionaries(st.sampled_from(["worker", "waiting", *CLIENT_PHASES]), odd_values))
def test_whatever_is_sent_is_read_or_refused(entries: dict[str, Any]) -> None:
    try:
        timings = ClientTimings.decode(ConfigRecord(entries))
    except ValueError:
        return
    assert timings.busy >= 0
    assert 0 <= timings.waiting < math.inf
