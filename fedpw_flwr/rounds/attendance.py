"""Waiting for clients, but not for ever.

Flower's sampling waits without end for the nodes it needs. Here the waiting has a limit; after it
the run stops with a reason, or goes on with the clients that are there until the others are back.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar, get_args

logger = logging.getLogger("flwr")

WhenMissing = Literal["stop", "continue"]

Client = TypeVar("Client")

WAITING = "waiting_for_clients"
"""Attribute of log records: True while clients are waited for, False when they have come."""

_INTERVAL = 1.0
"""Seconds between two looks at who is there."""

_REMINDER = 60.0
"""Seconds between two lines in the log."""


class TooFewClientsError(RuntimeError):
    """Fewer clients than needed were there for longer than `wait_for_clients`."""


class Attendance:
    """Counts the clients that are there.

    ValueError if the limit is negative or not finite, or `when_missing` is neither; TypeError if
    the limit is not a number.
    """

    def __init__(self, limit: float | None, when_missing: WhenMissing) -> None:
        if limit is not None:
            if isinstance(limit, bool) or not isinstance(limit, int | float):
                raise TypeError(f"wait_for_clients must be seconds or None, got {limit!r}")
            if not 0 <= limit < math.inf:
                raise ValueError(
                    f"wait_for_clients={limit} is not a number of seconds; None waits for ever"
                )
        if when_missing not in get_args(WhenMissing):
            raise ValueError(f"when_missing={when_missing!r}: choose 'stop' or 'continue'")
        self._limit = math.inf if limit is None else limit
        self._when_missing = when_missing
        self._short_since: float | None = None
        self._nobody_since: float | None = None

    def wait(self, look: Callable[[], Iterable[Client]], needed: int) -> list[Client]:
        """Wait until enough clients are there, or for long enough.

        Returns those that are there: at least `needed`, or at least 1 where the run goes on with
        fewer. `TooFewClientsError` if the limit has passed and the run is to stop, or nobody is
        there at all.
        """
        reminded = -math.inf
        while len(there := list(look())) < needed:
            now = time.monotonic()
            since = self._short_since = self._short_since or now
            self._nobody_since = None if there else self._nobody_since or now
            if self._nobody_since is not None and self._when_missing == "continue":
                # With nobody there is no going on: the limit counts from when the last one left.
                since = self._nobody_since
            left = self._limit - (now - since)
            if left <= 0:
                self._check_after(len(there), needed)
                return there
            if now - reminded >= _REMINDER:
                reminded = now
                rest = f", for another {left:.0f} s at most (wait_for_clients)"
                logger.info(
                    "Waiting for clients: %s of %s are there%s",
                    *(len(there), needed, "" if left == math.inf else rest),
                    extra={WAITING: True},
                )
            time.sleep(min(_INTERVAL, left))
        if reminded > -math.inf:
            logger.info("%s clients are there", len(there), extra={WAITING: False})
        self._short_since = self._nobody_since = None
        return there

    def _check_after(self, there: int, needed: int) -> None:
        """Log or raise that the limit has passed, by whether the run goes on."""
        found = f"{there} of {needed} clients are there after {self._limit:g} s (wait_for_clients)"
        if self._when_missing == "stop":
            raise TooFewClientsError(
                f"{found}: give a longer limit, or when_missing='continue' to go on with those "
                "that are there"
            )
        if there == 0:
            raise TooFewClientsError(f"{found}: nobody is left to go on with")
        logger.warning("%s: going on with them", found, extra={WAITING: False})
