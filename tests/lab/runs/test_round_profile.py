"""A round's profile: two views that add up, a mean of the usual rounds, strict reading."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedpw_flwr.lab.runs.round_profile import MeanProfile, MessageTimes, RoundProfile
from fedpw_flwr.wire.timings import CLIENT_PHASES, IDLE, SERVER_PHASES


def profile(
    train: float = 1.0, aggregate: float = 0.5, clients: int = 4, workers: int = 2
) -> RoundProfile:
    """Clients one after another on each worker; the server waits, then aggregates."""
    server = dict.fromkeys(SERVER_PHASES, 0.0)
    server |= {"clients": clients * train / workers, "aggregate": aggregate}
    seconds = {phase: [0.0] * clients for phase in CLIENT_PHASES} | {"train": [train] * clients}
    return RoundProfile(
        server,
        MessageTimes(
            id=list(range(clients)),
            worker=[client % workers for client in range(clients)],
            waiting=[0.25] * clients,
            seconds=seconds,
        ),
    )


def test_server_phases_add_up_to_the_round_and_workers_time_to_all_of_theirs() -> None:
    example = profile(train=1.0, aggregate=0.5, clients=4, workers=2)
    assert example.seconds == 2.5
    assert example.num_workers == 2
    assert example.workers["train"] == 4.0
    assert example.workers[IDLE] == 1.0  # both wait for the aggregation
    assert sum(example.workers.values()) == example.num_workers * example.seconds


def test_workers_that_say_they_did_more_than_there_was_time_for_are_not_idle() -> None:
    example = profile(clients=2, workers=2)
    example.clients.seconds["adjust"][:] = [9.0, 9.0]
    assert example.workers[IDLE] == 0


def test_a_profile_comes_back_from_json_as_it_was() -> None:
    example = profile()
    assert RoundProfile.from_json(json.loads(json.dumps(example.to_json()))) == example


def test_the_file_names_what_a_reader_looks_for() -> None:
    line = profile().to_json()
    assert line["workers"] == {
        "count": 2,
        **dict.fromkeys(CLIENT_PHASES, 0.0),
        "train": 4.0,
        "idle": 1.0,
    }
    assert line["server"]["clients"] == 2.0
    assert line["clients"]["train"] == [1.0] * 4
    assert line["clients"]["worker"] == [0, 1, 0, 1]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e300, None, "long", [1.0]])
def test_no_duration_is_no_profile(value: Any) -> None:
    line = profile().to_json()
    line["server"] = line["server"] | {"send": value}
    with pytest.raises((ValueError, TypeError)):
        RoundProfile.from_json(line)


def test_lists_of_different_lengths_are_refused() -> None:
    line = profile().to_json()
    line["clients"] = line["clients"] | {"waiting": [0.1]}
    with pytest.raises(ValueError, match="one entry a message"):
        RoundProfile.from_json(line)


def test_the_mean_leaves_out_the_round_in_which_workers_start() -> None:
    mean = MeanProfile.of_rounds({1: profile(train=30.0), 2: profile(), 3: profile(aggregate=1.5)})
    assert (mean.first, mean.last, mean.num_workers) == (2, 3, 2)
    assert mean.seconds == 3.0
    assert mean.server["aggregate"] == 1.0
    assert mean.workers["train"] == 4.0
    assert mean.which == "mean of rounds 2 to 3"


def test_the_only_round_is_the_mean_of_itself() -> None:
    mean = MeanProfile.of_rounds({1: profile()})
    assert mean.server == profile().server
    assert mean.which == "round 1"


def test_without_a_round_there_is_no_mean() -> None:
    with pytest.raises(ValueError, match="no round was profiled"):
        MeanProfile.of_rounds({})


def test_sentences_name_the_longest_phase_first() -> None:
    server, workers = MeanProfile.of_rounds({1: profile()}).sentences()
    assert server == "where a round's time went (round 1, 2.50 s): clients 80 %, aggregate 20 %"
    assert workers == "what 2 workers did meanwhile: train 80 %, idle 20 %"


def test_without_clients_there_is_only_the_server_s_sentence() -> None:
    silent = RoundProfile(
        profile().server, MessageTimes([], [], [], {phase: [] for phase in CLIENT_PHASES})
    )
    (sentence,) = MeanProfile.of_rounds({1: silent}).sentences()
    assert "clients 80 %" in sentence
