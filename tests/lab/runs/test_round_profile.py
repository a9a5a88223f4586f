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
    server |= {"clients": clients * train / max(workers, 1), "aggregate": aggregate}
    seconds = {phase: [0.0] * clients for phase in CLIENT_PHASES} | {"train": [train] * clients}
    worker = [client % workers for client in range(clients)]
    times = MessageTimes(list(range(clients)), worker, [0.25] * clients, seconds)
    return RoundProfile(server, times)


def test_server_phases_add_up_to_the_round_and_workers_time_to_all_of_theirs() -> None:
    example = profile(train=1.0, aggregate=0.5, clients=4, workers=2)
    assert (example.seconds, example.num_workers) == (2.5, 2)
    assert example.workers["train"] == 4.0
    assert example.workers[IDLE] == 1.0  # both wait for the aggregation
    assert sum(example.workers.values()) == example.num_workers * example.seconds
    # Workers that say they did more than there was time for are not idle.
    example.clients.seconds["adjust"][:] = [9.0] * 4
    assert example.workers[IDLE] == 0


def test_the_file_names_what_a_reader_looks_for_and_gives_the_profile_back() -> None:
    line = json.loads(json.dumps(profile().to_json()))
    told = dict.fromkeys(CLIENT_PHASES, 0.0) | {"train": 4.0, "idle": 1.0}
    assert line["workers"] == {"count": 2, **told}
    assert line["server"]["clients"] == 2.0
    assert line["clients"]["train"] == [1.0] * 4
    assert line["clients"]["worker"] == [0, 1, 0, 1]
    assert RoundProfile.from_json(line) == profile()


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e300, None, "long", [1.0]])
def test_no_duration_is_no_profile(value: Any) -> None:
    for view, bad in (("server", {"send": value}), ("clients", {"waiting": [value] * 4})):
        line = profile().to_json()
        line[view] = line[view] | bad
        with pytest.raises((ValueError, TypeError)):
            RoundProfile.from_json(line)


def test_lists_of_different_lengths_are_refused() -> None:
    line = profile().to_json()
    line["clients"] = line["clients"] | {"waiting": [0.1]}
    with pytest.raises(ValueError, match="one entry a message"):
        RoundProfile.from_json(line)


def test_the_mean_leaves_out_the_round_in_which_workers_start() -> None:
    mean = MeanProfile.of_rounds({1: profile(train=30.0), 2: profile(), 3: profile(aggregate=1.5)})
    assert mean.num_workers == 2
    assert (mean.seconds, mean.server["aggregate"], mean.workers["train"]) == (3.0, 1.0, 4.0)
    assert mean.which == "mean of rounds 2 to 3"


def test_the_only_round_is_the_mean_of_itself_and_without_one_there_is_none() -> None:
    mean = MeanProfile.of_rounds({1: profile()})
    assert mean.server == profile().server
    assert mean.which == "round 1"
    with pytest.raises(ValueError, match="no round was profiled"):
        MeanProfile.of_rounds({})


def test_sentences_name_the_longest_phase_first_and_workers_only_where_there_are_any() -> None:
    server, workers = MeanProfile.of_rounds({1: profile()}).sentences()
    assert server == "where a round's time went (round 1, 2.50 s): clients 80 %, aggregate 20 %"
    assert workers == "what 2 workers did meanwhile: train 80 %, idle 20 %"
    (alone,) = MeanProfile.of_rounds({1: profile(clients=0, workers=0)}).sentences()
    assert alone == "where a round's time went (round 1, 0.50 s): aggregate 100 %"
