"""Where a client's time goes, told where the server wants to know.

The code that does the work says what it is doing (``with phase("train"): ...``) and knows nothing
of who measures. While nobody does, a phase costs a look at a variable.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from time import perf_counter, time

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fedpw_flwr.wire.timings import TIMINGS_RECORD, ClientTimings

_measured: ContextVar[dict[str, float] | None] = ContextVar("measured", default=None)
"""Seconds by phase, where they are measured."""


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Give the seconds of each `phase` inside the block, in this thread."""
    seconds: dict[str, float] = {}
    token = _measured.set(seconds)
    try:
        yield seconds
    finally:
        _measured.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Count a block as one of `CLIENT_PHASES`, less the phases inside it, where it is measured."""
    seconds = _measured.get()
    if seconds is None:
        yield
        return
    begin, others = perf_counter(), sum(seconds.values())
    try:
        yield
    finally:
        inside = sum(seconds.values()) - others
        own = max(0.0, perf_counter() - begin - inside)
        seconds[name] = seconds.get(name, 0.0) + own


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
        waiting = max(0.0, time() - message.metadata.created_at)
        with measured() as seconds:
            with phase("set_up"):
                wanted = self._wanted(context)
            reply = call_next(message, context)
        if wanted and reply.has_content():
            timings = ClientTimings(_worker_name(os.getpid()), waiting, seconds)
            reply.content[TIMINGS_RECORD] = timings.encode()
        return reply


@lru_cache(maxsize=1)
def _worker_name(process_id: int) -> str:
    """Name this process by chance: a number of the machine's own is nobody's business."""
    return secrets.token_hex(8)
