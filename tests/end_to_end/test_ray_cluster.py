"""The app on a Ray cluster of two machines, as far as one machine can be two.

Two Ray nodes with a processor each stand for the machines. The second one finds empty folders where
the command has its temporary files, and where the package is: what runs there was brought there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from support.commands import (
    COMMANDS,
    QUIET,
    assert_same_model,
    kill_at_once,
    left_of,
    marked,
    rounds_of,
    typed,
    wait_for_rounds,
)

import fedpw_flwr
from fedpw_flwr.lab.config.configuration import config_folder

pytestmark = pytest.mark.long

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
    mark: Mapping[str, str]
    port: int = 0
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{HEAD}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **QUIET,
            **self.mark,
            "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "TMPDIR": str(self.files),
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

    def stop(self) -> None:
        for node in self.nodes.values():
            node.terminate()
        for node in self.nodes.values():
            with suppress(subprocess.TimeoutExpired):
                node.wait(timeout=20)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if subprocess.run([*OTHER_FILES, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system lets nobody give a process files of its own (unshare --mount)")
    sessions, files = (Path(tempfile.mkdtemp(prefix=one, dir="/tmp")) for one in ("ray-", "m"))
    try:
        with marked() as mark:
            running = Cluster(sessions, files, mark)
            running.start_head()
            running.start_second()
            yield running
            running.stop()
    finally:
        for folder in (sessions, files):
            shutil.rmtree(folder, ignore_errors=True)


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
    workers = [p for p in left_of(cluster.mark) if p.name().startswith("ray::ClientWorker")]
    assert psutil.wait_procs(workers, timeout=20)[1] == []

    status, output = end_of(fedpw(workplace, cluster, *words, f"hydra.run.dir={workplace / 'one'}"))
    assert status == 0, output
    assert rounds_of(workplace / "two") == rounds_of(workplace / "one")
    assert_same_model(workplace / "two", workplace / "one")


def test_a_run_goes_on_where_a_machine_is_lost(cluster: Cluster, workplace: Path) -> None:
    folder = workplace / "lost"
    address = f"runtime.ray_address={cluster.address}"
    words = (*RUN, "rounds=500", address, f"hydra.run.dir={folder}")
    command = fedpw(workplace, cluster, *words)
    wait_for_rounds(folder, 2, command)
    kill_at_once(cluster.nodes.pop(SECOND))
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
        words = ("fedpw", f"runtime.ray_address={address}")
        done = typed(*words, folder=tmp_path, status=1, timeout=60)
    assert "no Ray cluster answers" in done.stderr
    assert not (tmp_path / "outputs").exists()
