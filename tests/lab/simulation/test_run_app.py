"""A run ends as its apps do, and a command takes everything it started with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from support.commands import MARK, left_of

from fedpw_flwr.lab.config.configuration import ConfigurationError, RuntimeSettings
from fedpw_flwr.lab.simulation.run import App, RunOutcome, run_app
from fedpw_flwr.lab.simulation.runs import Runs

AWKWARD = """model.name="a 'b' c", x=[1, 2] y={k: v} z=ü=é \\ # $HOME"""
CLIENT = "tiny_app.client_app"


def tiny(output: Path, overrides: str) -> App:
    config = {"overrides": overrides, "output-folder": str(output)}
    return App("tiny_app.server_app:app", f"{CLIENT}:app", 3, config)


@pytest.fixture(scope="module")
def runs(tiny_app: Path) -> Iterator[Runs]:
    with pytest.MonkeyPatch.context() as monkeypatch, Runs() as runs:
        monkeypatch.syspath_prepend(str(tiny_app))
        monkeypatch.setenv("PYTHONPATH", str(tiny_app))
        yield runs
    for name in [name for name in sys.modules if name.startswith("tiny_app")]:
        del sys.modules[name]


def run(runs: Runs, output: Path, overrides: str, **runtime: int) -> RunOutcome:
    settings = RuntimeSettings(**({"total_cpus": 2} | runtime))
    with runs.workers(settings, 3, [CLIENT]) as workers:
        return run_app(tiny(output, overrides), workers, output)


SCRIPT = """
import signal, sys
from pathlib import Path
# As in a terminal, even where the tests themselves run in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[3]))
from fedpw_flwr.lab.config.configuration import RuntimeSettings
from fedpw_flwr.lab.simulation.run import App, run_app
from fedpw_flwr.lab.simulation.runs import Runs

output, overrides = Path(sys.argv[1]), sys.argv[2]
app = App("tiny_app.server_app:app", "tiny_app.client_app:app", 3,
          {"overrides": overrides, "output-folder": str(output)})
ended = []

def run():
    with runs.workers(RuntimeSettings(total_cpus=2), 3, ["tiny_app.client_app"]) as workers:
        ended.append(run_app(app, workers, output))

with Runs() as runs:
    runs.play([run])
sys.exit(ended[0].error or 0)
"""


def giving(name: str) -> Callable[[], object]:
    """Called in a worker: what a run gives it, and what takes it back."""
    variable = f"FEDPW_TEST_{name}"
    os.environ[variable] = "given"
    return partial(os.environ.pop, variable)


class Command:
    """A run in a process of its own, with a Ray; none of its processes outlives the test."""

    def __init__(self, app: Path, output: Path, overrides: str, hang_up: str = "SIG_DFL") -> None:
        self.mark = {MARK: uuid.uuid4().hex}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(output), overrides, hang_up],
            env=os.environ | self.mark | {"PYTHONPATH": f"{app}:{app.parent}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Its own terminal-like group: a signal to it must not reach the tests.
            start_new_session=True,
        )

    def wait_for(self, file: Path, seconds: float = 60.0) -> None:
        """Wait until the run has written a file."""
        deadline = time.monotonic() + seconds
        while not file.exists():
            assert time.monotonic() < deadline
            assert self.process.poll() is None, self.ended()
            time.sleep(0.1)

    def ended(self, seconds: float = 60.0) -> str:
        """Wait for its end, and return what it wrote."""
        return self.process.communicate(timeout=seconds)[0]

    def left(self, seconds: float = 0.0) -> list[psutil.Process]:
        """Return its processes that are alive, after so many seconds in which they may end."""
        deadline = time.monotonic() + seconds
        while (left := left_of(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [one for one in left if one.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def waiting(tiny_app: Path, tmp_path: Path) -> Command:
    """A command whose run waits, with all its processes started."""
    command = Command(tiny_app, tmp_path / "out", "wait")
    command.wait_for(tmp_path / "out" / "waits")
    return command


def test_a_good_run_is_completed_and_its_words_arrive_unchanged(runs: Runs, tmp_path: Path) -> None:
    output = tmp_path / "an output folder"
    outcome = run(runs, output, AWKWARD)
    assert outcome.completed, outcome
    assert (output / "overrides.txt").read_text(encoding="utf-8") == AWKWARD
    log = outcome.log_file.read_text(encoding="utf-8")
    assert "INFO    : [ROUND 2/2]" in log
    assert "client of partition 2 wrote:\nclient has " in log
    assert "\x1b[" not in log


def test_workers_stay_from_run_to_run_and_logs_do_not_mix(runs: Runs, tmp_path: Path) -> None:
    outcomes: dict[str, RunOutcome] = {}

    def run_one(name: str) -> None:
        outcomes[name] = run(runs, tmp_path / name, name)

    runs.play([partial(run_one, name) for name in ("one", "two", "three")], at_a_time=2)
    assert all(outcome.completed for outcome in outcomes.values())
    pids = set()
    for name in ("one", "two", "three"):
        log = outcomes[name].log_file.read_text()
        assert log.count("[ROUND 1/2]") == 1
        pids |= {line.split()[-1] for line in log.splitlines() if line.startswith("client has")}
    assert 1 <= len(pids) <= 2


def test_a_server_that_raises_is_a_failed_run_with_its_message(runs: Runs, tmp_path: Path) -> None:
    outcome = run(runs, tmp_path / "out", "raise")
    assert not outcome.completed
    assert outcome.error.startswith(
        "ValueError: rounds=0 makes no sense:\n  choose at least 1\n  raised in "
    )
    assert "tiny_app/server_app.py, line " in outcome.error
    # The next run has the same workers.
    assert run(runs, tmp_path / "next", "ok").completed


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("dies", "The actor died unexpectedly"),
        ("hangs", "TimeoutError: it had not answered in time"),
        ("raises", "OSError: the disk is full"),
        ("no message", "a ClientApp must return a Message, got function"),
    ],
)
def test_a_client_that_fails_costs_its_own_reply_alone(
    runs: Runs, tmp_path: Path, fault: str, said: str
) -> None:
    outcome = run(runs, tmp_path / "out", fault)
    assert outcome.completed, outcome.error
    results = json.loads((tmp_path / "out" / "replies.json").read_text())
    # Flower's FedAvg draws the order of its nodes.
    first, second = [one["partition"] for one in results][:2], results[2:]
    assert sorted(first) == [0, 2]
    assert sorted(one["partition"] for one in second) == [0, 1, 2]
    log = outcome.log_file.read_text()
    assert said in log


def test_state_lives_as_long_as_the_run(runs: Runs, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert run(runs, tmp_path / name, "ok").completed
        results = json.loads((tmp_path / name / "replies.json").read_text())
        assert [one["seen"] for one in results] == [1, 1, 1, 2, 2, 2]


def test_what_a_run_gives_its_workers_is_given_back_when_it_ends(
    runs: Runs, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        with runs.workers(RuntimeSettings(total_cpus=2), 3, [CLIENT]) as workers:
            output = tmp_path / name
            gives: Callable[[], list[object]] = partial(list, [partial(giving, name)])
            assert run_app(tiny(output, "ok"), workers, output, gives).completed
            log = (output / "flower.log").read_text()
            assert f"has ['{name}']" in log
            assert log.count("has [") == log.count(f"has ['{name}']")


def test_a_failing_preparation_ends_the_run_before_it_begins(runs: Runs, tmp_path: Path) -> None:
    def prepare() -> list[object]:
        raise ValueError("unknown dataset")

    output = tmp_path / "out"
    with (
        runs.workers(RuntimeSettings(total_cpus=1), 2, []) as workers,
        pytest.raises(ValueError, match="unknown dataset"),
    ):
        run_app(tiny(output, "ok"), workers, output, prepare)
    assert not output.exists()


@pytest.mark.long
def test_clients_that_fit_no_machine_are_refused(runs: Runs, tmp_path: Path) -> None:
    with (
        runs.workers(RuntimeSettings(gpus_per_client=99.0, total_cpus=1), 3, []) as workers,
        pytest.raises(ConfigurationError, match="no machine has room for one client"),
    ):
        workers.wait()
    # Others are started for what has room.
    assert run(runs, tmp_path / "out", "ok", total_cpus=1).completed


def test_modules_that_workers_cannot_import_end_the_run(runs: Runs, tmp_path: Path) -> None:
    with runs.workers(RuntimeSettings(total_cpus=4), 3, ["no_such_module"]) as workers:
        outcome = run_app(tiny(tmp_path / "out", "ok"), workers, tmp_path / "out")
    assert "no worker process could be started" in outcome.error
    assert "no_such_module" in outcome.error


@pytest.mark.long
def test_no_more_workers_start_than_there_are_clients(runs: Runs) -> None:
    with runs.workers(RuntimeSettings(total_cpus=3), 1, []) as workers:
        assert workers.wait() == 1
    with runs.workers(RuntimeSettings(total_cpus=3), 2, []) as more:
        assert more is workers
        assert more.wait() == 2


@pytest.mark.parametrize(
    ("number", "statuses"),
    [
        (signal.SIGINT, (1, 130, -signal.SIGINT)),
        pytest.param(signal.SIGTERM, (128 + signal.SIGTERM,), marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, (128 + signal.SIGHUP,), marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, (-signal.SIGKILL,), marks=pytest.mark.long),
    ],
)
def test_a_command_that_is_ended_leaves_no_process(
    waiting: Command, tmp_path: Path, number: signal.Signals, statuses: tuple[int, ...]
) -> None:
    waiting.process.send_signal(number)
    waiting.ended()
    assert waiting.process.returncode in statuses
    # Who was killed cannot wait until the others have ended.
    assert waiting.left(20 if number == signal.SIGKILL else 0) == []
    log = (tmp_path / "out" / "flower.log").read_text()
    assert ("fedpw: stopped: KeyboardInterrupt" in log) is (number == signal.SIGINT)


@pytest.mark.long
def test_a_command_under_nohup_survives_the_hang_up(tiny_app: Path, tmp_path: Path) -> None:
    command = Command(tiny_app, tmp_path / "out", "ok", hang_up="SIG_IGN")
    command.wait_for(tmp_path / "out" / "overrides.txt")
    command.process.send_signal(signal.SIGHUP)
    output = command.ended(120)
    assert command.process.returncode == 0, output


@pytest.mark.long
def test_a_second_ctrl_c_does_not_wait(waiting: Command) -> None:
    waiting.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    started = time.monotonic()
    waiting.process.send_signal(signal.SIGINT)
    waiting.ended()
    assert time.monotonic() - started < 2
    assert waiting.left(20) == []


@pytest.mark.long
@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_a_killed_ray_ends_the_command(tiny_app: Path, tmp_path: Path, victim: str) -> None:
    command = Command(tiny_app, tmp_path / "out", "go on")
    command.wait_for(tmp_path / "out" / "replies.json")
    next(process for process in command.left() if process.name() == victim).kill()
    command.ended(120)
    assert command.process.returncode != 0
    assert command.left(20) == []


@pytest.mark.long
def test_what_a_killed_command_left_behind_the_next_one_removes(runs: Runs) -> None:
    folder = Path(tempfile.mkdtemp(prefix="fedpw-"))
    (folder / "in-use").touch()
    with runs.workers(RuntimeSettings(total_cpus=1), 1, []) as workers:
        workers.wait()
        assert not folder.exists()
        (own,) = [one.parent for one in folder.parent.glob("fedpw-*/in-use") if _mine(one)]
        assert any(own.iterdir())


def _mine(lock: Path) -> bool:
    return any(file.path == str(lock) for file in psutil.Process().open_files())


@pytest.mark.long
def test_two_commands_and_a_strangers_ray_do_not_meet(tiny_app: Path, tmp_path: Path) -> None:
    environment = dict(os.environ, RAY_TMPDIR="/tmp/fedpw-test-ray")
    ray = Path(sys.executable).parent / "ray"
    subprocess.run(
        [ray, "start", "--head", "--num-cpus=1", "--include-dashboard=false", "--port=0"],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    strangers = [p for p in psutil.process_iter() if "fedpw-test-ray" in " ".join(_words(p))]
    try:
        assert len(strangers) >= 2
        commands = [Command(tiny_app, tmp_path / str(n), f"run {n}") for n in (1, 2)]
        for command in commands:
            output = command.ended(180)
            assert command.process.returncode == 0, output
        for number in (1, 2):
            folder = tmp_path / str(number)
            assert (folder / "overrides.txt").read_text() == f"run {number}"
            rounds = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
            assert [record["round"] for record in rounds] == [0, 1, 2]
        assert all(process.is_running() for process in strangers)
    finally:
        for process in strangers:
            process.kill()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
