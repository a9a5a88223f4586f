"""The app on a Ray cluster of two machines, as far as one machine can be two.

Two Ray nodes with a processor each stand for the machines. The second one finds empty folders where
the command has its temporary files, and where the package is: what runs there was brought there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

import fedpw_flwr
from fedpw_flwr.lab.config.configuration import config_folder

pytestmark = pytest.mark.long

COMMANDS = Path(sys.executable).parent
SCRIPT = config_folder().parent / "examples" / "ray-cluster" / "where_clients_ran.py"
PACKAGE = Path(fedpw_flwr.__file__).parent
HEAD, SECOND = "127.0.0.1", "127.0.0.2"
OTHER_FILES = ("unshare", "--user", "--map-root-user", "--mount")
CLIENTS, ROUNDS = 8, 5
RUN = (
    "strategy=of_the_user",
    "dataset.domains=[scans,blurred]",
    "model.width=2",
    "client.epochs=1",
    "partition=by_domain",
    f"partition.clients_per_domain={CLIENTS // 2}",
    "partition.train_per_client=32",
    "seed=3",
)
TIMINGS = ("seconds", "profile")

# Only in a folder of the user's: another machine knows it if the run brought it there.
STRATEGY = """
defaults:
  - fedpw
  - _self_
beta: 0.4
name: of_the_user
"""


@dataclass
class Cluster:
    """Two Ray nodes, and what a command needs to run on them.

    Attributes
    ----------
    sessions : Path
        Where Ray keeps its sockets and logs; a short path, because of the sockets.
    files : Path
        The commands' temporary folder.
    """

    sessions: Path
    files: Path
    port: int = 0
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def address(self) -> str:
        return f"{HEAD}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",
            "FLWR_TELEMETRY_ENABLED": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "TMPDIR": str(self.files),
            "STARTED_BY_TEST": self.mark,
        }

    def start_head(self) -> None:
        with socket.socket() as free:
            free.bind((HEAD, 0))
            self.port = free.getsockname()[1]
        self._start(HEAD, ["--head", f"--port={self.port}", "--include-dashboard=false"])

    def start_second(self) -> None:
        mounts = 'mount -t tmpfs none "$0" && mount -t tmpfs none "$1" && shift && exec "$@"'
        hide = [*OTHER_FILES, "sh", "-c", mounts, str(self.files), str(PACKAGE)]
        self._start(SECOND, [f"--address={self.address}"], through=hide)

    def _start(self, ip: str, words: Sequence[str], through: Sequence[str] = ()) -> None:
        folder = self.sessions / ip
        folder.mkdir()
        with (folder / "output").open("wb") as output:
            self.nodes[ip] = subprocess.Popen(
                [
                    *(*through, str(COMMANDS / "ray"), "start", *words, "--block", "--num-cpus=1"),
                    *(f"--node-ip-address={ip}", f"--temp-dir={folder}"),
                    *("--min-worker-port=0", "--max-worker-port=0"),
                ],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in (text := (folder / "output").read_text()):
            assert self.nodes[ip].poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.1)

    def pull_the_plug(self, ip: str) -> None:
        """Kill -9 all that runs on a node, at once."""
        node = psutil.Process(self.nodes.pop(ip).pid)
        for process in [*node.children(recursive=True), node]:
            with suppress(psutil.Error):
                process.kill()

    def messages(self) -> dict[str, int]:
        """Ask the example's script how many messages each node has worked on so far."""
        printed = subprocess.run(
            [sys.executable, SCRIPT, self.address],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        return {ip: int(count) for ip, count in re.findall(r"^(\S+): (\d+) ", printed, re.M)}

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get("STARTED_BY_TEST") == self.mark:
                    found.append(process)
        return found

    def stop(self) -> None:
        for node in self.nodes.values():
            node.terminate()
        for node in self.nodes.values():
            with suppress(subprocess.TimeoutExpired):
                node.wait(timeout=20)
        left = self.processes()
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        for folder in (self.sessions, self.files):
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if subprocess.run([*OTHER_FILES, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system lets nobody give a process files of its own (unshare --mount)")
    folders = [Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp")) for prefix in ("ray-", "m")]
    running = Cluster(*folders)
    try:
        running.start_head()
        running.start_second()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "conf" / "strategy").mkdir(parents=True)
    (folder / "conf" / "strategy" / "of_the_user.yaml").write_text(STRATEGY)
    return folder


def fedpw(workplace: Path, cluster: Cluster, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [COMMANDS / "fedpw", "--config-dir", workplace / "conf", *words],
        cwd=workplace,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end_of(command: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = command.communicate(timeout=300)
    return command.returncode, output


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    """The rounds in metrics.jsonl, without what the clock said."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in TIMINGS}
        for line in lines
    ]


def wait_for_rounds(folder: Path, number: int, command: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    metrics = folder / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_bytes().count(b"\n") > number):
        assert command.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_clients_run_on_both_machines_and_the_model_has_the_bits_of_one_machine(
    cluster: Cluster, workplace: Path
) -> None:
    words = (*RUN, f"rounds={ROUNDS}")
    before = cluster.messages()
    on_cluster = (f"runtime.ray_address={cluster.address}", f"hydra.run.dir={workplace / 'two'}")
    status, output = end_of(fedpw(workplace, cluster, *words, *on_cluster))
    assert status == 0, output

    after = cluster.messages()
    done = {ip: count - before[ip] for ip, count in after.items()}
    assert len(done) == 2
    assert all(count > 0 for count in done.values())
    # What workers did in their last second, Ray never hears: they end with the last round.
    assert sum(done.values()) <= CLIENTS * ROUNDS
    assert all(record["failed"] == 0 for record in rounds_of(workplace / "two")[1:])
    assert cluster.nodes.keys() == {HEAD, SECOND}
    workers = [p for p in cluster.processes() if p.name().startswith("ray::ClientWorker")]
    assert psutil.wait_procs(workers, timeout=20)[1] == []

    status, output = end_of(fedpw(workplace, cluster, *words, f"hydra.run.dir={workplace / 'one'}"))
    assert status == 0, output
    assert rounds_of(workplace / "two") == rounds_of(workplace / "one")
    two, one = (load_file(workplace / run / "model.safetensors") for run in ("two", "one"))
    assert two.keys() == one.keys()
    for name, tensor in one.items():
        assert tensor.equal(two[name]), name


def test_a_run_goes_on_where_a_machine_is_lost(cluster: Cluster, workplace: Path) -> None:
    folder = workplace / "lost"
    address = f"runtime.ray_address={cluster.address}"
    words = (*RUN, "rounds=500", address, f"hydra.run.dir={folder}")
    command = fedpw(workplace, cluster, *words)
    wait_for_rounds(folder, 2, command)
    cluster.pull_the_plug(SECOND)
    reached = len(rounds_of(folder)) - 1
    # Ray takes some seconds to call a machine dead.
    wait_for_rounds(folder, reached + 4, command)
    command.send_signal(signal.SIGTERM)
    status, output = end_of(command)
    assert status == 128 + signal.SIGTERM, output
    # It cost the clients that it worked for, or should have, in one round.
    failed = [record["failed"] for record in rounds_of(folder)[1:]]
    assert 1 <= sum(failed) <= 2
    assert failed[-2:] == [0, 0]
    assert "did not answer: Actor" in (folder / "flower.log").read_text()

    reached = len(rounds_of(folder)) - 1
    status, output = end_of(fedpw(workplace, cluster, f"resume={folder}", f"rounds={reached + 2}"))
    assert status == 0, output
    rounds = rounds_of(folder)
    assert [record["round"] for record in rounds] == list(range(reached + 3))
    assert rounds[-1]["clients"]["id"] == list(range(CLIENTS))


def test_an_address_at_which_nothing_answers_is_refused(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind((HEAD, 0))
        address = f"{HEAD}:{nobody.getsockname()[1]}"
        done = subprocess.run(
            [COMMANDS / "fedpw", f"runtime.ray_address={address}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert "no Ray cluster answers" in done.stderr
    assert not (tmp_path / "outputs").exists()
