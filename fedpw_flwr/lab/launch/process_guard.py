"""End every process of a launch, whatever becomes of the one that launched it.

A simulation is a tree of some fifteen processes, several of which detach themselves on purpose, and
a launching process that was killed cannot clear them up. So a small process of its own, this file
run as a script, starts the SuperLink and stays beside it: as a *subreaper* (Linux) it inherits
every orphan of the tree, and a marker in the environment finds the rest elsewhere. It ends the tree
when its standard input closes, which the operating system sees to however the launching process
ends. Other SuperLinks and other Rays of the same user are left alone.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

MARKER = "FEDPW_LAUNCH"
"""Name of the environment variable whose value names the launch a process belongs to."""

GRACE_SECONDS = 3.0
"""Seconds that processes are given to end by themselves before they are killed."""

_PR_SET_CHILD_SUBREAPER = 36


def family(launch: str, root: int) -> list[psutil.Process]:
    """List the living processes that carry the mark of a launch or descend from `root`.

    The calling process and `root` itself are not listed.
    """
    found: dict[int, psutil.Process] = {}
    # Where the root is gone, what is left of its tree carries the marker.
    with contextlib.suppress(psutil.Error):
        found.update((child.pid, child) for child in psutil.Process(root).children(recursive=True))
    for process in psutil.process_iter():
        try:
            # Flower makes its SuperExec unreadable to everyone but root; it is found in the tree.
            if process.environ().get(MARKER) == launch:
                found[process.pid] = process
        except (psutil.Error, OSError):
            continue
    return [
        process
        for pid, process in found.items()
        if pid not in (root, os.getpid()) and _is_alive(process)
    ]


def end_family(launch: str, root: int, grace: float) -> None:
    """End the processes of a launch: ask, wait `grace` seconds, then kill until none is left."""
    if grace > 0:
        processes = family(launch, root)
        for process in processes:
            _send(process, signal.SIGTERM)
        psutil.wait_procs(processes, timeout=grace)
    deadline = time.monotonic() + 10.0
    # Again and again: a process may have started another between listing and killing.
    while (processes := family(launch, root)) and time.monotonic() < deadline:
        for process in processes:
            _send(process, signal.SIGKILL)
        psutil.wait_procs(processes, timeout=1.0)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _send(process: psutil.Process, signal_number: signal.Signals) -> None:
    try:
        process.send_signal(signal_number)
    except (psutil.Error, OSError):
        # It ended in between, which is what was wanted.
        return


def _adopt_orphans() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class _Hurry(Exception):
    """The launching process asked not to wait for a graceful end."""


def _raise_hurry(_signal_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Hurry


def _watch(child: subprocess.Popen[bytes]) -> None:
    """Return when the launching process is gone or lets go, or the child ended."""
    while child.poll() is None:
        ready, _, _ = select.select([0], [], [], 0.2)
        if ready and not os.read(0, 1024):
            return


def main() -> int:
    """Start the command, wait, end everything, remove the folder if nobody else will.

    Arguments on the command line: the folder to remove, then the command to start. Returns the exit
    status of the command, 0 where the guard itself ended it.
    """
    folder, *command = sys.argv[1:]
    launch = os.environ[MARKER]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _raise_hurry)
    status: int | None = None
    try:
        _adopt_orphans()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        _watch(child)
        status = child.returncode
        end_family(launch, os.getpid(), GRACE_SECONDS)
    except _Hurry:
        end_family(launch, os.getpid(), 0.0)
    if status is None:
        shutil.rmtree(Path(folder), ignore_errors=True)
    # Where the command ended by itself, the launching process still wants to read its log.
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
