"""Where a round's time goes: the phases by name, and what a client says of its own.

A client's timings travel in a ConfigRecord: Flower's FedAvg refuses a reply with a second
MetricRecord, and would average what stands in the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from flwr.app import ConfigRecord

SERVER_PHASES = (
    "configure",  # the strategy prepares the messages
    "send",  # they travel to the first client
    "clients",  # clients are at work
    "collect",  # the last reply travels back
    "aggregate",
    "client_evaluation",  # clients evaluate, where the strategy asks them to
    "evaluate",  # the server evaluates the global model
    "other",  # saving models, logs
)
"""In the order in which they follow each other."""

CLIENT_PHASES = ("set_up", "download", "train", "adjust", "evaluate", "upload")
"""What a client does about a message: build itself (its data and model the first time), decode the
message, train, mask, rescale and pack the update, evaluate, encode the reply."""

IDLE = "idle"
"""What a worker does while it does none of `CLIENT_PHASES`."""

TIMINGS_RECORD = "timings"
"""ConfigRecord of a reply that holds a client's timings; nothing that decides reads it."""


@dataclass(frozen=True)
class ClientTimings:
    """Where a client's time went on one message, in seconds.

    `worker` names the process that did the work, and tells processes apart. `waiting` lasts from
    the message's creation on the server to the client's first line: on the way, and in a queue for
    a free worker; where the machines are two, so are the clocks. `seconds` are by `CLIENT_PHASES`.
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
        from flwr.app import ConfigRecord  # who only plots phases need not wait for Flower

        return ConfigRecord({"worker": self.worker, "waiting": self.waiting, **self.seconds})

    @classmethod
    def decode(cls, record: ConfigRecord) -> Self:
        """Read what a client sent; phases that it does not name took no time.

        ValueError if a figure is no finite, non-negative number, or the worker has no name.
        """
        worker = record.get("worker")
        if not isinstance(worker, str) or not 0 < len(worker) <= 64:
            raise ValueError(f"the timings name no worker, but {worker!r:.80}")
        seconds = {phase: _seconds(record, phase) for phase in CLIENT_PHASES}
        return cls(worker, _seconds(record, "waiting"), seconds)


def _seconds(record: ConfigRecord, key: str) -> float:
    value = record.get(key, 0.0)
    is_truth = isinstance(value, bool)
    if isinstance(value, int | float) and not is_truth and 0 <= value < math.inf:
        return float(value)
    raise ValueError(f"the timings give {key} as {value!r:.80}, which is no number of seconds")
