"""Only the processes of a launch are ended, and all of them."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import pytest

from fedpw_flwr.lab.launch.process_guard import MARKER, end_family, family

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('ready', flush=True); time.sleep(600)"
)


class Sleepers:
    """Starts processes and makes sure that none outlives the test."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, launch: str | None) -> "subprocess.Popen[bytes]":
        environment = {key: value for key, value in os.environ.items() if key != MARKER}
        if launch is not None:
            environment[MARKER] = launch
        process = subprocess.Popen(
            [sys.executable, "-c", STUBBORN],
            env=environment,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        return process


@pytest.fixture
def sleepers() -> Iterator[Sleepers]:
    sleepers = Sleepers()
    yield sleepers
    for process in sleepers.started:
        process.kill()
        process.wait()


NOBODY = 2**22 + 1
"""A process id that the system never gives out."""


def test_a_launch_is_found_by_its_marker_alone(sleepers: Sleepers) -> None:
    launch = uuid.uuid4().hex
    mine = [sleepers.start(launch), sleepers.start(launch)]
    sleepers.start(None)
    sleepers.start(uuid.uuid4().hex)
    assert {process.pid for process in family(launch, NOBODY)} == {p.pid for p in mine}


def test_descendants_belong_to_the_launch_without_a_marker(sleepers: Sleepers) -> None:
    process = sleepers.start(None)
    assert process.pid in {found.pid for found in family(uuid.uuid4().hex, os.getpid())}


def test_a_process_that_ignores_sigterm_is_killed_and_a_strangers_is_not(
    sleepers: Sleepers,
) -> None:
    launch = uuid.uuid4().hex
    mine, strangers = sleepers.start(launch), sleepers.start(uuid.uuid4().hex)
    started = time.monotonic()
    end_family(launch, NOBODY, grace=0.5)
    assert time.monotonic() - started < 5
    assert mine.poll() is not None
    assert strangers.poll() is None
    assert family(launch, NOBODY) == []
