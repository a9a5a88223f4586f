"""Commands of this environment, typed as a user types them, and the processes that they start."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

COMMANDS = Path(sys.executable).parent
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
MARK = "STARTED_BY_TEST"


def typed(
    *words: str | Path, folder: Path, status: int | None = 0, timeout: float = 300, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder to its end, which has to have this status; None: any."""
    done = subprocess.run(
        [COMMANDS / words[0], *words[1:]],
        cwd=folder,
        env=os.environ | QUIET | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert status in (None, done.returncode), (done.stdout + done.stderr)[-6000:]
    return done


@contextmanager
def marked() -> Iterator[dict[str, str]]:
    """Give a variable for commands' environment; what inherited it is ended afterwards."""
    mark = {MARK: uuid.uuid4().hex}
    try:
        yield mark
    finally:
        left = left_of(mark)
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in left:
                with suppress(psutil.Error):
                    end(process)
            left = psutil.wait_procs(left, timeout=10)[1]


def left_of(mark: Mapping[str, str]) -> list[psutil.Process]:
    """Find the processes that are still running of those that inherited the mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark[MARK]:
                found.append(process)
    return found


def kill_at_once(process: subprocess.Popen[Any]) -> None:
    """Kill -9 a process and all that descend from it."""
    root = psutil.Process(process.pid)
    tree = [root, *root.children(recursive=True)]
    for one in tree:
        with suppress(psutil.Error):
            one.kill()
    process.wait()
    psutil.wait_procs(tree, timeout=20)


def wait_until(happened: Callable[[], Any], command: subprocess.Popen[Any]) -> None:
    """Wait for something that a command does while it runs."""
    deadline = time.monotonic() + 120
    while not happened():
        assert command.poll() is None, "the command ended"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def wait_for_rounds(folder: Path, number: int, command: subprocess.Popen[Any]) -> None:
    """Wait until a run has recorded so many rounds and one more."""
    wait_until(lambda: len(rounds_of(folder)) > number, command)


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    """Read a run's rounds, without what the clock said; none where nothing is written yet."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "profile")}
        for record in records
    ]


def assert_same_model(one: Path, other: Path) -> None:
    """Two runs ended with the same bits."""
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.equal(second[name]), name


def free_ports(count: int) -> int:
    """Find the first of so many free ports in a row."""
    generator = random.Random()
    while True:
        first = generator.randrange(20000, 32000)
        with ExitStack() as stack, suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
