"""What a client says about its time on one message, when a run is profiled.

It travels in a ConfigRecord: Flower's FedAvg refuses a reply with a second MetricRecord, and would
average what stands in the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from flwr.app import ConfigRecord

from fedpw_flwr.wire.phases import CLIENT_PHASES

__all__ = ["TIMINGS_RECORD", "ClientTimings"]

TIMINGS_RECORD = "timings"
"""ConfigRecord of a reply that holds a client's timings; nothing that decides reads it."""

_LONGEST_NAME = 64


@dataclass(frozen=True)
class ClientTimings:
    """Where a client's time went on one message, in seconds.

    Attributes
    ----------
    worker : str
        Name of the process that did the work; tells processes apart, and nothing else.
    waiting : float
        From the message's creation on the server to the client's first line: on the way, and in a
        queue for a free worker. Two clocks where the machines are two.
    seconds : dict[str, float]
        Seconds of each of `CLIENT_PHASES`.
    """

    worker: str
    waiting: float
    seconds: dict[str, float]

    @property
    def busy(self) -> float:
        """Seconds of all phases together."""
        return sum(self.seconds.values())

    def encode(self) -> ConfigRecord:
        """Return the record to put into a reply under `TIMINGS_RECORD`."""
        return ConfigRecord({"worker": self.worker, "waiting": self.waiting, **self.seconds})

    @classmethod
    def decode(cls, record: ConfigRecord) -> Self:
        """Read what a client sent. Phases that it does not name took no time.

        Raises
        ------
        ValueError
            If a figure is no finite, non-negative number, or the worker has no name.
        """
        worker = record.get("worker")
        if not isinstance(worker, str) or not 0 < len(worker) <= _LONGEST_NAME:
            raise ValueError(f"the timings name no worker, but {worker!r:.80}")
        return cls(
            worker=worker,
            waiting=_seconds(record, "waiting"),
            seconds={phase: _seconds(record, phase) for phase in CLIENT_PHASES},
        )


def _seconds(record: ConfigRecord, key: str) -> float:
    value = record.get(key, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"the timings give {key} as {value!r:.80}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"the timings give {key} as {seconds} s")
    return seconds
