"""Where a round's time goes, seen from the server; only there in runs that are profiled.

A round is a fixed sequence of events, so an observer can tell the phases apart: what lies between
preparing the messages and aggregating the replies is the network's and the clients'. Clients tell
the rest in their replies.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import itemgetter

from flwr.app import ArrayRecord, Message, MetricRecord

from fedpw_flwr.lab.runs.round_profile import MessageTimes, RoundProfile
from fedpw_flwr.rounds.observers import Observer
from fedpw_flwr.wire.records import client_of
from fedpw_flwr.wire.timings import CLIENT_PHASES, SERVER_PHASES, TIMINGS_RECORD, ClientTimings


class RoundProfiler(Observer):
    """Collects where the time of the current round went."""

    def __init__(self) -> None:
        self._server: dict[str, float] = {}
        self._told: list[tuple[int, ClientTimings]] = []
        self._since = time.perf_counter()
        self._asked = 0

    def on_round(self, server_round: int) -> None:
        """Begin to prepare the messages."""
        self._since = time.perf_counter()

    def on_messages(self, phase: str, server_round: int, messages: Sequence[Message]) -> None:
        """Count the preparation of training messages; evaluation begins when they are prepared."""
        self._asked = len(messages)
        if phase == "train":
            self.spent("configure", self._lap())

    def on_replies(self, phase: str, server_round: int, replies: Sequence[Message]) -> None:
        """Count an exchange of messages, and keep what the clients say about their time."""
        if phase == "train":
            self.trained(replies, self._lap())
        else:
            self._keep(replies, time.perf_counter() - self._since)

    def trained(self, replies: Sequence[Message], seconds: float) -> None:
        """Count an exchange of training messages that took some seconds on the server's clock.

        A reply without timings that can be read or be true is passed over: nobody works longer than
        the exchange took. Nor waits longer, but clocks of different machines differ, so a waiting
        that is too long is shortened.
        """
        for phase, part in _divide(seconds, self._keep(replies, seconds)).items():
            self.spent(phase, part)

    def on_step(
        self, server_round: int, arrays: ArrayRecord | None, metrics: MetricRecord | None
    ) -> None:
        """Count the aggregation."""
        self.spent("aggregate", self._lap())

    def on_evaluation(self, server_round: int, metrics: MetricRecord | None) -> None:
        """Count the clients' evaluation, where they were asked for one."""
        if self._asked:
            self.spent("client_evaluation", self._lap())

    def _lap(self) -> float:
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds

    def spent(self, phase: str, seconds: float) -> None:
        """Count the server's seconds in one of `SERVER_PHASES`."""
        self._server[phase] = self._server.get(phase, 0.0) + seconds

    def take(self, seconds: float) -> RoundProfile | None:
        """Return the profile of the round that ends now, and begin the next one's.

        Of the round's `seconds`, those that no phase accounts for are ``other``. None if no client
        was asked for anything, as before the first round.
        """
        server, told = self._server, sorted(self._told, key=itemgetter(0))
        self._server, self._told = {}, []
        if "clients" not in server:
            return None
        phases = {phase: server.get(phase, 0.0) for phase in SERVER_PHASES}
        phases["other"] = max(0.0, seconds - sum(phases.values()))
        clients, timings = [one for one, _ in told], [one for _, one in told]
        workers = list(dict.fromkeys(one.worker for one in timings))
        return RoundProfile(
            server={phase: _micro(value) for phase, value in phases.items()},
            clients=MessageTimes(
                id=clients,
                worker=[workers.index(one.worker) for one in timings],
                waiting=[_micro(one.waiting) for one in timings],
                seconds={
                    phase: [_micro(one.seconds[phase]) for one in timings]
                    for phase in CLIENT_PHASES
                },
            ),
        )

    def _keep(self, replies: Iterable[Message], seconds: float) -> list[ClientTimings]:
        # A node's first reply counts, as it does for the model.
        told: dict[int, tuple[int, ClientTimings]] = {}
        for reply in replies:
            timings = _timings(reply, seconds)
            if timings is not None:
                told.setdefault(reply.metadata.src_node_id, (client_of(reply), timings))
        self._told += told.values()
        return [timings for _, timings in told.values()]


def _divide(exchange: float, told: Sequence[ClientTimings]) -> dict[str, float]:
    """Divide an exchange of messages into the ways there and back and the clients' work between."""
    if not told:
        return {"clients": exchange}
    begin = min(timings.waiting for timings in told)
    end = min(max(timings.waiting + timings.busy for timings in told), exchange)
    return {"send": begin, "clients": end - begin, "collect": exchange - end}


def _timings(reply: Message, exchange: float) -> ClientTimings | None:
    """Read a reply's timings; None where there are none, or none that can be true."""
    if not reply.has_content() or TIMINGS_RECORD not in reply.content.config_records:
        return None
    try:
        timings = ClientTimings.decode(reply.content.config_records[TIMINGS_RECORD])
    except ValueError:
        return None
    if timings.busy > exchange:
        return None
    return replace(timings, waiting=min(timings.waiting, exchange - timings.busy))


def _micro(seconds: float) -> float:
    """Round to microseconds: finer digits are noise that makes the record long."""
    return round(seconds, 6)
