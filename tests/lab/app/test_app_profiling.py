"""A profiled run: any strategy, the same results, and a client's nonsense costs only its entry."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st
from support.app_federation import NUM_CLIENTS, OVERRIDES, AppGrid, server_context

from fedpw_flwr.lab.app import client_app
from fedpw_flwr.lab.app.profiling import RoundProfiler
from fedpw_flwr.lab.app.server_app import app
from fedpw_flwr.lab.runs.round_profile import RoundProfile
from fedpw_flwr.lab.runs.run_folder import RunFolder
from fedpw_flwr.wire.timings import CLIENT_PHASES, SERVER_PHASES, TIMINGS_RECORD, ClientTimings

PROFILED = f"{OVERRIDES} rounds=1 runtime.profile=true"

Pair = tuple[RunFolder, RunFolder]

STRATEGIES = ["fedavg", "fedpw_packed"]


def run(
    folder: Path, overrides: str = PROFILED, apps: Mapping[int, ClientApp] | None = None
) -> RunFolder:
    random.seed(0)  # Flower's sampling decides the order in which FedAvg adds up
    app(AppGrid(apps, overrides), server_context(folder, overrides))
    return RunFolder(folder)


def profiles_of(folder: RunFolder) -> list[RoundProfile]:
    initial, *trained = folder.read_rounds()
    assert initial.profile is None
    profiles = [record.profile for record in trained]
    assert all(profile is not None for profile in profiles)
    return [profile for profile in profiles if profile is not None]


def saying(record: ConfigRecord | None) -> ClientApp:
    """The client, with other timings, or none, in its replies."""
    liar = ClientApp()

    @liar.train()
    def _train(message: Message, context: Context) -> Message:
        reply = client_app.app(message, context)
        del reply.content[TIMINGS_RECORD]
        if record is not None:
            reply.content[TIMINGS_RECORD] = record
        return reply

    return liar


def reply_with(timings: Mapping[str, Any] | None, node: int = 11) -> Message:
    content = RecordDict()
    if timings is not None:
        content[TIMINGS_RECORD] = ConfigRecord(dict(timings))
    asked = Message(RecordDict(), dst_node_id=node, message_type="train")
    asked.metadata.__dict__["_message_id"] = f"to {node}"
    return Message(content, reply_to=asked)


@pytest.fixture(scope="module", params=STRATEGIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One run without and one with a profile, everything else the same."""
    plain, profiled = (
        run(
            tmp_path_factory.mktemp(str(request.param)) / "run",
            f"{OVERRIDES} strategy={request.param} runtime.profile={profile}",
        )
        for profile in ("false", "true")
    )
    return plain, profiled


def test_every_round_says_where_its_time_went(pair: Pair) -> None:
    _, folder = pair
    for record, profile in zip(folder.read_rounds()[1:], profiles_of(folder), strict=True):
        assert profile.seconds == pytest.approx(record.seconds, abs=1e-4)
        assert tuple(profile.server) == SERVER_PHASES
        assert all(profile.server[phase] > 0 for phase in ("clients", "aggregate", "evaluate"))
        assert profile.server["client_evaluation"] == 0
        assert profile.clients.id == list(range(NUM_CLIENTS))
        assert set(profile.clients.worker) == {0}
        for phase in ("set_up", "download", "train", "upload"):
            assert all(seconds > 0 for seconds in profile.clients.seconds[phase])
        busy = sum(sum(profile.clients.seconds[phase]) for phase in CLIENT_PHASES)
        assert busy <= profile.server["clients"] + 1e-4
    assert (folder.path / "profile.png").is_file()


def test_profiling_changes_no_bit_of_the_model_and_no_figure(pair: Pair) -> None:
    plain, profiled = pair
    model = "model.safetensors"
    assert (plain.path / model).read_bytes() == (profiled.path / model).read_bytes()
    without_time = [
        {key: value for key, value in json.loads(line).items() if key not in ("seconds", "profile")}
        for folder in (plain, profiled)
        for line in folder.metrics_file.read_text().splitlines()
    ]
    half = len(without_time) // 2
    assert without_time[:half] == without_time[half:]
    assert "profile" not in plain.metrics_file.read_text()
    assert not (plain.path / "profile.png").exists()


def test_clients_that_evaluate_are_timed_beside_those_that_train(tmp_path: Path) -> None:
    overrides = f"{PROFILED} strategy=fedavg strategy.fraction_evaluate=1.0"
    for profile in profiles_of(run(tmp_path / "run", overrides)):
        assert profile.clients.id == sorted(2 * list(range(NUM_CLIENTS)))
        assert sum(seconds > 0 for seconds in profile.clients.seconds["evaluate"]) == NUM_CLIENTS
        assert sum(seconds > 0 for seconds in profile.clients.seconds["train"]) == NUM_CLIENTS
        assert profile.server["client_evaluation"] >= sum(profile.clients.seconds["evaluate"])


def test_a_client_that_sends_nonsense_loses_only_its_own_entry(tmp_path: Path) -> None:
    sent = [
        None,
        ConfigRecord({"worker": "w", "train": "all day"}),
        ConfigRecord({"worker": "w", "train": math.nan}),
        ConfigRecord({"worker": "w", "train": 1e9}),
        ConfigRecord({"worker": "w", "train": 1e308, "adjust": 1e308}),
        ConfigRecord({"train": 0.001}),
    ]
    apps = {client: saying(said) for client, said in enumerate(sent)}
    folder = run(tmp_path / "run", f"{OVERRIDES} runtime.profile=true", apps)

    for record, profile in zip(folder.read_rounds()[1:], profiles_of(folder), strict=True):
        assert profile.clients.id == [6, 7]
        assert profile.seconds == pytest.approx(record.seconds, abs=1e-4)
        assert record.clients is not None
        assert record.clients.id == list(range(NUM_CLIENTS))


def test_ways_there_and_back_are_told_from_the_work_between(tmp_path: Path) -> None:
    far = ClientApp()

    @far.train()
    def _train(message: Message, context: Context) -> Message:
        time.sleep(0.05)
        reply = client_app.app(message, context)
        time.sleep(0.03)
        return reply

    for profile in profiles_of(run(tmp_path / "run", apps=dict.fromkeys(range(NUM_CLIENTS), far))):
        assert profile.server["send"] >= 0.05
        # A message's way begins when it is made, the exchange when all are.
        assert profile.server["collect"] + profile.server["configure"] >= 0.03
        # One after the other in this process: the others' ways lie between the first and the last.
        assert profile.server["clients"] >= (NUM_CLIENTS - 1) * 0.08


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.none()
        | st.dictionaries(
            st.sampled_from(["worker", "waiting", *CLIENT_PHASES]),
            st.text(max_size=3) | st.floats() | st.integers(-(2**63), 2**64 - 1),
        )
        | st.fixed_dictionaries(
            {
                "worker": st.sampled_from("ab"),
                "waiting": st.floats(0, 1e9),
                "train": st.floats(0, 2),
            }
        ),
        max_size=6,
    ),
    st.floats(0, 3),
)
def test_whatever_clients_send_makes_a_profile_that_adds_up(
    replies: list[Mapping[str, Any] | None], exchange: float
) -> None:
    profiler = RoundProfiler()
    profiler.trained(
        [reply_with(timings, node) for node, timings in enumerate(replies, start=11)], exchange
    )
    profile = profiler.take(exchange + 1)

    assert profile is not None
    if profile.clients.id == []:
        assert profile.server["clients"] == pytest.approx(exchange, abs=1e-5)
        assert (profile.server["send"], profile.server["collect"]) == (0, 0)
    assert profile.seconds == pytest.approx(exchange + 1, abs=1e-4)
    assert all(seconds >= 0 for seconds in profile.server.values())
    assert all(seconds <= exchange + 1e-5 for seconds in profile.clients.waiting)
    assert RoundProfile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


def test_a_client_is_counted_once_and_by_its_node_where_it_has_no_number_of_its_own() -> None:
    timings = ClientTimings("w", 0.1, dict.fromkeys(CLIENT_PHASES, 0.01)).encode()
    profiler = RoundProfiler()
    profiler.trained([reply_with(timings, node) for node in (42, 17, 42)], 1.0)
    profile = profiler.take(1.0)
    assert profile is not None
    assert profile.clients.id == [17, 42]
