"""Where the time of a round went, on the server's clock and in the workers' processes.

The two views answer two questions. The server's phases follow each other and add up to the round:
they say what to shorten. The workers' seconds run beside each other and add up to the number of
workers times the round: they say whether the machine was busy, and with what.

Nothing here touches a disk or imports what is slow, so the progress display can use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from fedpw_flwr.lab.runs.strict_json import StrictJson
from fedpw_flwr.wire.timings import CLIENT_PHASES, IDLE, SERVER_PHASES


@dataclass(frozen=True)
class MessageTimes(StrictJson):
    """What clients said about their time in a round, as parallel lists: one entry a message.

    ValueError if the lists have different lengths, a phase is missing, or one is no duration.
    """

    id: list[int]  # who answered; a client that trains and evaluates stands here twice
    worker: list[int]  # the process in which it ran, counted from 0 within the round
    waiting: list[float]  # seconds from the message's creation to the client's first line
    seconds: dict[str, list[float]]  # of each of `CLIENT_PHASES`

    def __post_init__(self) -> None:
        lengths = {len(self.worker), len(self.waiting), *map(len, self.seconds.values())}
        if set(self.seconds) != set(CLIENT_PHASES) or lengths != {len(self.id)}:
            raise ValueError(
                f"the lists of {sorted(self.seconds)} must be those of {sorted(CLIENT_PHASES)}, "
                "with one entry a message"
            )
        for durations in (self.waiting, *self.seconds.values()):
            _check_durations(durations)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, the phases beside the other lists."""
        form = super().to_json()
        phases = form.pop("seconds")
        return {**form, **phases}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild from the JSON form."""
        phases = {phase: content[phase] for phase in CLIENT_PHASES}
        return super().from_json({**content, "seconds": phases})


@dataclass(frozen=True)
class RoundProfile(StrictJson):
    """Where the time of one round went.

    ``server`` has the seconds of each of `SERVER_PHASES`, in their order; they add up to the round.
    ``send`` and ``collect`` are as good as the clocks of server and clients agree. Where no client
    told its times, the whole exchange of messages counts as ``clients``.
    """

    server: dict[str, float]
    clients: MessageTimes

    def __post_init__(self) -> None:
        _check_durations(self.server.values())

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the round."""
        return math.fsum(self.server.values())

    @property
    def num_workers(self) -> int:
        """Number of processes in which clients ran."""
        return len(set(self.clients.worker))

    @property
    def workers(self) -> dict[str, float]:
        """Seconds of all workers together by phase, `IDLE` included."""
        busy = {phase: math.fsum(self.clients.seconds[phase]) for phase in CLIENT_PHASES}
        idle = self.num_workers * self.seconds - math.fsum(busy.values())
        return {**busy, IDLE: max(0.0, idle)}

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; the workers' sums stand in it for whoever reads the file."""
        sums = {phase: round(seconds, 6) for phase, seconds in self.workers.items()}
        workers = {"count": self.num_workers, **sums}
        return {"server": self.server, "workers": workers, "clients": self.clients.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild from the JSON form."""
        server = {phase: content["server"][phase] for phase in SERVER_PHASES}
        return super().from_json({**content, "server": server})


@dataclass(frozen=True)
class MeanProfile:
    """A round of the usual kind: the mean of all rounds but the first, where there are others.

    In the first round every worker starts and builds its data and model. ``server`` and ``workers``
    are mean seconds by phase, as in `RoundProfile`.
    """

    which: str
    """The rounds, in words."""
    num_workers: float
    server: dict[str, float]
    workers: dict[str, float]

    @classmethod
    def of_rounds(cls, profiles: Mapping[int, RoundProfile]) -> Self:
        """Average profiles by the number of the round; ValueError if there are none."""
        if not profiles:
            raise ValueError("no round was profiled, so there is nothing to average")
        usual = sorted(profiles)[1:] or list(profiles)
        chosen = [profiles[number] for number in usual]
        several = f"mean of rounds {usual[0]} to {usual[-1]}"
        return cls(
            which=several if len(usual) > 1 else f"round {usual[0]}",
            num_workers=math.fsum(profile.num_workers for profile in chosen) / len(chosen),
            server=_mean([profile.server for profile in chosen]),
            workers=_mean([profile.workers for profile in chosen]),
        )

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the round."""
        return math.fsum(self.server.values())

    def sentences(self) -> list[str]:
        """Tell where the time went, the longest phase first: the server's view, the workers'."""
        said = [
            f"where a round's time went ({self.which}, {self.seconds:.2f} s): "
            f"{_shares(self.server)}"
        ]
        if self.num_workers:
            workers = "1 worker" if self.num_workers == 1 else f"{self.num_workers:.3g} workers"
            said.append(f"what {workers} did meanwhile: {_shares(self.workers)}")
        return said


def share_in_words(share: float) -> str:
    """Return a share of 0 to 1 in whole percent, or that it is less than one."""
    return f"{100 * share:.0f} %" if share >= 0.005 else "<1 %"


def _check_durations(durations: Iterable[float]) -> None:
    for value in durations:
        if not 0 <= value < 1e12:
            raise ValueError(f"{value!r} is no duration in seconds")


def _mean(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {phase: math.fsum(part[phase] for part in parts) / len(parts) for phase in parts[0]}


def _shares(seconds: Mapping[str, float]) -> str:
    total = math.fsum(seconds.values())
    spent = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(
        f"{phase.replace('_', ' ')} {share_in_words(value / total)}"
        for phase, value in spent
        if value > 0
    )
