"""A stopwatch that runs only where somebody reads it.

The code that does the work says what it is doing (``with phase("train"): ...``) and knows nothing
of who measures. While no stopwatch is running, a phase costs a look at a variable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Stopwatch", "phase"]


class Stopwatch:
    """Adds up seconds by phase. Of nested phases only the innermost is counted.

    Parameters
    ----------
    clock : Callable[[], float]
        Gives seconds since any moment.

    Attributes
    ----------
    seconds : dict[str, float]
        Seconds of each phase entered so far, without those of the phases inside it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._phases: list[str] = []
        self._clock = clock
        self._since = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let `phase` count for this stopwatch, in this thread, until the block ends."""
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)

    def _enter(self, name: str) -> None:
        self._count()
        self._phases.append(name)

    def _leave(self) -> None:
        self._count()
        self._phases.pop()

    def _count(self) -> None:
        now = self._clock()
        if self._phases:
            name = self._phases[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


_running: ContextVar[Stopwatch | None] = ContextVar("running", default=None)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Count the seconds of a block as those of a phase, if a stopwatch is running.

    Parameters
    ----------
    name : str
        The phase, one of `fedpw_flwr.wire.phases.CLIENT_PHASES`.
    """
    stopwatch = _running.get()
    if stopwatch is None:
        yield
        return
    stopwatch._enter(name)
    try:
        yield
    finally:
        stopwatch._leave()
