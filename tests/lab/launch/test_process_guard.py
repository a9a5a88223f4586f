"""Only the processes of a launch are ended, and all of them."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from fedpw_flwr.lab.launch.process_guard import MARKER, end_family, family

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('ready', flush=True); time.sleep(600)"
)


Start = Callable[[str | None], "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process with the marker of a launch, or without one; none outlives the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(launch: str | None) -> "subprocess.Popen[bytes]":
        environment = {key: value for key, value in os.environ.items() if key != MARKER}
        process = subprocess.Popen(
            [sys.executable, "-c", STUBBORN],
            env=environment if launch is None else environment | {MARKER: launch},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


NOBODY = 2**22 + 1
"""A process id that the system never gives out."""


def test_a_process_that_ignores_sigterm_is_killed_and_a_strangers_is_not(start: Start) -> None:
    launch = uuid.uuid4().hex
    mine, unmarked, strangers = start(launch), start(None), start(uuid.uuid4().hex)
    assert [process.pid for process in family(launch, NOBODY)] == [mine.pid]
    started = time.monotonic()
    end_family(launch, NOBODY, grace=0.5)
    assert time.monotonic() - started < 5
    assert mine.poll() is not None
    assert (unmarked.poll(), strangers.poll()) == (None, None)
    assert family(launch, NOBODY) == []


def test_descendants_belong_to_the_launch_without_a_marker(start: Start) -> None:
    process = start(None)
    assert process.pid in {found.pid for found in family(uuid.uuid4().hex, os.getpid())}
