"""The memory of a command and of all that it starts, from Linux's /proc."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yield a list whose one number becomes the peak memory, in MiB, of the processes of the block.

    Once a second the proportional set sizes of this process's descendants are summed. Those that
    outlive their parents become children of this process, so that none is overlooked; what is
    left at the end of the block is ended.
    """
    _adopt_orphans(True)
    peak, over = [0.0], threading.Event()

    def sample() -> None:
        while not over.wait(1.0):
            below = psutil.Process().children(recursive=True)
            peak[0] = max(peak[0], sum(map(proportional_size, below)))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peak
    finally:
        over.set()
        sampler.join()
        left = psutil.Process().children(recursive=True)
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    end(process)
            _, left = psutil.wait_procs(left, timeout=5)
        _adopt_orphans(False)


def proportional_size(process: psutil.Process) -> float:
    """Return a process's memory in MiB, of shared pages its part; 0 if it has just ended."""
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def _adopt_orphans(adopt: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)
