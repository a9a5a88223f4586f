"""A ClientApp mod that tells the server where the client's time went."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from functools import lru_cache

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fedpw_flwr.client.stopwatch import Stopwatch, phase
from fedpw_flwr.wire.timings import TIMINGS_RECORD, ClientTimings

__all__ = ["TimingsMod"]


class TimingsMod:
    """Adds a ConfigRecord with the client's timings to its reply, in runs where that is wanted.

    Nothing else of the reply changes, and replies of other runs pass untouched. It stands *first*
    in the list of mods, so that everything the client does is inside.

    Parameters
    ----------
    wanted : Callable[[Context], bool]
        Tells whether the run is profiled. Its own time counts as setting the client up.
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
