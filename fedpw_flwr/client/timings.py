"""Where a client's time goes: a stopwatch that runs only where the server wants to know.

The code that does the work says what it is doing (``with phase("train"): ...``) and knows nothing
of who measures. While no stopwatch is running, a phase costs a look at a variable.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fedpw_flwr.wire.timings import TIMINGS_RECORD, ClientTimings


class Stopwatch:
    """Adds up seconds by phase. Of nested phases only the innermost is counted."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._phase: str | None = None
        self._since = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let `phase` count for this stopwatch, in this thread, until the block ends."""
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)

    def turn_to(self, phase: str | None) -> str | None:
        """Count the time so far, go on with another phase, and return the one before it."""
        before, now = self._phase, self._clock()
        if before is not None:
            self.seconds[before] = self.seconds.get(before, 0.0) + now - self._since
        self._phase, self._since = phase, now
        return before


_running: ContextVar[Stopwatch | None] = ContextVar("running", default=None)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Count a block as one of `CLIENT_PHASES`, if a stopwatch is running."""
    stopwatch = _running.get()
    if stopwatch is None:
        yield
        return
    outer = stopwatch.turn_to(name)
    try:
        yield
    finally:
        stopwatch.turn_to(outer)


class TimingsMod:
    """Adds a ConfigRecord with the client's timings to its reply, in runs where that is wanted.

    Nothing else of the reply changes, and replies of other runs pass untouched. It stands *first*
    in the list of mods, so that everything the client does is inside. The time in which `wanted`
    tells whether the run is profiled counts as setting the client up.
    """

    def __init__(self, wanted: Callable[[Context], bool]) -> None:
        self._wanted = wanted

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Answer the message, with timings where they are wanted."""
        waiting = max(0.0, time.time() - message.metadata.created_at)
        stopwatch = Stopwatch()
        with stopwatch.running(), phase("set_up"):
            wanted = self._wanted(context)
        if not wanted:
            return call_next(message, context)
        with stopwatch.running():
            reply = call_next(message, context)
        if reply.has_content():
            timings = ClientTimings(_worker_name(os.getpid()), waiting, stopwatch.seconds)
            reply.content[TIMINGS_RECORD] = timings.encode()
        return reply


@lru_cache(maxsize=1)
def _worker_name(process_id: int) -> str:
    """Name this process by chance: a number of the machine's own is nobody's business."""
    return secrets.token_hex(8)
