"""A launch ends as Flower says, and takes everything it started with it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedpw_flwr.lab.launch.launch import ClientResources, RunOutcome, launch
from fedpw_flwr.lab.launch.process_guard import MARKER

AWKWARD = """model.name="a 'b' c", x=[1, 2] y={k: v} z=ü=é \\ # $HOME"""


def _run(app: Path, output: Path, overrides: str, **resources: int) -> RunOutcome:
    return launch(
        {"overrides": overrides, "output-folder": str(output)},
        ClientResources(3, total_cpus=2, **resources),
        output_folder=output,
        rounds=2,
        app_folder=app,
    )


class Launch:
    """A launch in a process of its own, with a Ray; none of its processes outlives the test."""

    def __init__(self, app: Path, output: Path, overrides: str, hang_up: str = "SIG_DFL") -> None:
        script = (
            "import signal, sys; from pathlib import Path\n"
            # As in a terminal, even where the tests themselves run in the background.
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            f"signal.signal(signal.SIGHUP, signal.{hang_up})\n"
            "from fedpw_flwr.lab.launch.launch import ClientResources, launch\n"
            "app, output, overrides = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]\n"
            "outcome = launch({'overrides': overrides, 'output-folder': str(output)},\n"
            "    ClientResources(3, total_cpus=2),\n"
            "    output_folder=output, rounds=2, app_folder=app)\n"
            "sys.exit(0 if outcome.completed else outcome.status)\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(app), str(output), overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Its own terminal-like group: a signal to it must not reach the tests.
            start_new_session=True,
        )

    def wait_for_ray(self, seconds: float = 60.0) -> None:
        """Wait until the launch has a raylet, and note all its processes."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.children = psutil.Process(self.process.pid).children(recursive=True)
            if "raylet" in map(_name, self.children):
                self.mark = next(
                    environment[MARKER]
                    for child in self.children
                    if MARKER in (environment := child.environ())
                )
                return
            time.sleep(0.1)
        raise AssertionError("Ray did not start")

    def ended(self, seconds: float = 60.0) -> str:
        """Wait for its end, and return what it wrote."""
        return self.process.communicate(timeout=seconds)[0]

    def left(self) -> list[psutil.Process]:
        """Return its processes that are alive, those included that carry its mark."""
        found = list(self.children)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARKER) == self.mark:
                    found.append(process)
        return _alive(found)


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [
        process
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


@pytest.fixture
def waiting(tiny_app: Path, tmp_path: Path) -> Launch:
    """A launch whose run waits, with all its processes started."""
    launch = Launch(tiny_app, tmp_path / "out", "wait")
    launch.wait_for_ray()
    return launch


def test_a_good_run_is_completed_and_its_words_arrive_unchanged(
    tiny_app: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    output = tmp_path / "an output folder"
    outcome = _run(tiny_app, output, AWKWARD)
    assert outcome.completed, outcome
    assert outcome.error == ""
    assert (output / "overrides.txt").read_text(encoding="utf-8") == AWKWARD
    log = outcome.log_file.read_text(encoding="utf-8")
    assert "[ROUND 2/2]" in log
    assert "\x1b[" not in log
    worked_in = log.split("client in ", 1)[1].splitlines()[0]
    assert worked_in != str(tiny_app)
    assert not Path(worked_in).exists()
    shown = capfd.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in shown if line.startswith("round")] == [
        "round 0/2",
        "round 1/2",
        "round 2/2",
    ]


def test_a_server_that_raises_is_a_failed_run_with_its_message(
    tiny_app: Path, tmp_path: Path
) -> None:
    outcome = _run(tiny_app, tmp_path / "out", "raise")
    assert outcome.status == "finished:failed"
    assert not outcome.completed
    assert outcome.error.startswith(
        "ValueError: rounds=0 makes no sense:\n"
        "  choose at least 1\n"
        "  raised in tiny_app/server_app.py, line "
    )


def test_a_failing_check_ends_the_launch_before_the_run(tiny_app: Path, tmp_path: Path) -> None:
    def check(_prepared_file: Path) -> None:
        raise ValueError("unknown dataset")

    before = psutil.Process().children(recursive=True)
    with pytest.raises(ValueError, match="unknown dataset"):
        launch(
            {},
            ClientResources(2),
            output_folder=tmp_path / "out",
            rounds=1,
            app_folder=tiny_app,
            check=check,
        )
    assert _alive([p for p in psutil.Process().children(recursive=True) if p not in before]) == []
    assert not (tmp_path / "out" / "flower.log").exists()


@pytest.mark.parametrize(
    ("number", "statuses"),
    [
        (signal.SIGINT, (1, 130, -signal.SIGINT)),
        pytest.param(signal.SIGTERM, (128 + signal.SIGTERM,), marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, (128 + signal.SIGHUP,), marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, (-signal.SIGKILL,), marks=pytest.mark.long),
    ],
)
def test_a_launch_that_is_ended_leaves_no_process(
    waiting: Launch, tmp_path: Path, number: signal.Signals, statuses: tuple[int, ...]
) -> None:
    waiting.process.send_signal(number)
    waiting.ended()
    assert waiting.process.returncode in statuses
    # Who was killed cannot wait until the others have ended.
    deadline = time.monotonic() + (20 if number == signal.SIGKILL else 0)
    while waiting.left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert waiting.left() == []
    log = (tmp_path / "out" / "flower.log").read_text()
    assert ("fedpw: stopped: KeyboardInterrupt" in log) is (number == signal.SIGINT)


@pytest.mark.long
def test_a_launch_under_nohup_survives_the_hang_up(tiny_app: Path, tmp_path: Path) -> None:
    launch = Launch(tiny_app, tmp_path / "out", "ok", hang_up="SIG_IGN")
    launch.wait_for_ray()
    launch.process.send_signal(signal.SIGHUP)
    output = launch.ended(120)
    assert launch.process.returncode == 0, output


@pytest.mark.long
def test_a_second_ctrl_c_does_not_wait(waiting: Launch) -> None:
    waiting.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    started = time.monotonic()
    waiting.process.send_signal(signal.SIGINT)
    waiting.ended()
    assert time.monotonic() - started < 8
    assert waiting.left() == []


@pytest.mark.long
@pytest.mark.parametrize("victim", ["flwr-simulation", "flower-superlink", "raylet"])
def test_a_killed_process_ends_the_launch_and_is_named(waiting: Launch, victim: str) -> None:
    killed = next(
        child
        for child in waiting.children
        if any(Path(word).name == victim for word in child.cmdline()[:2])
    )
    killed.kill()
    output = waiting.ended(120)
    assert waiting.process.returncode == 1
    assert "process-died" in output or "finished:failed" in output
    assert waiting.left() == []


@pytest.mark.long
def test_two_launches_and_a_strangers_ray_do_not_meet(tiny_app: Path, tmp_path: Path) -> None:
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
        launches = [Launch(tiny_app, tmp_path / str(number), f"run {number}") for number in (1, 2)]
        for launch in launches:
            output = launch.ended(180)
            assert launch.process.returncode == 0, output
        for number in (1, 2):
            folder = tmp_path / str(number)
            assert (folder / "overrides.txt").read_text() == f"run {number}"
            rounds = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
            assert [record["round"] for record in rounds] == [0, 1, 2]
        assert _alive(strangers) == strangers
    finally:
        for process in strangers:
            process.kill()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.long
def test_clients_that_fit_no_machine_are_a_failed_run(tiny_app: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    outcome = launch(
        {"overrides": "x", "output-folder": str(output)},
        ClientResources(3, gpus_per_client=99.0),
        output_folder=output,
        rounds=2,
        app_folder=tiny_app,
    )
    assert outcome.status == "finished:failed"
    assert "ActorPool is empty" in outcome.error


@pytest.mark.parametrize(("num_clients", "cpus_per_client"), [(1, 1), (3, 2), (2, 10_000)])
def test_no_more_processes_start_than_there_are_clients(
    num_clients: int, cpus_per_client: int
) -> None:
    config = ClientResources(num_clients, cpus_per_client=cpus_per_client).federation_config()
    total = int(config.rsplit("init-args-num-cpus=", 1)[1])
    assert 1 <= total // cpus_per_client <= num_clients


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        (
            ClientResources(8, cpus_per_client=2, gpus_per_client=0.5, total_cpus=4),
            "num-supernodes=8 client-resources-num-cpus=2 client-resources-num-gpus=0.5 "
            "init-args-num-cpus=4",
        ),
        (
            # The size of a cluster is its own.
            ClientResources(4, gpus_per_client=0.25, ray_address="192.168.0.10:6379"),
            "num-supernodes=4 client-resources-num-cpus=1 client-resources-num-gpus=0.25",
        ),
    ],
)
def test_resources_become_flowers_federation_config(resources: ClientResources, words: str) -> None:
    assert resources.federation_config() == words
