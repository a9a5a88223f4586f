"""Where a round's time goes, seen from the server; only there in runs that are profiled.

Flower's round is a fixed sequence of calls of the strategy, so a strategy that stands round another
one can tell the phases apart: what lies between preparing the messages and aggregating the replies
is the network's and the clients'. Clients tell the rest in their replies.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedpw_flwr.lab.runs.round_profile import MessageTimes, RoundProfile
from fedpw_flwr.wire.records import IDENTITY_KEY, IDENTITY_RECORD
from fedpw_flwr.wire.timings import CLIENT_PHASES, SERVER_PHASES, TIMINGS_RECORD, ClientTimings

__all__ = ["ProfiledStrategy", "RoundProfiler"]


@dataclass(frozen=True)
class _Told:
    client: int
    timings: ClientTimings


class RoundProfiler:
    """Collects where the time of the current round went."""

    def __init__(self) -> None:
        self._server: dict[str, float] = {}
        self._told: list[_Told] = []

    def spent(self, phase: str, seconds: float) -> None:
        """Count the server's seconds in one of `SERVER_PHASES`."""
        self._server[phase] = self._server.get(phase, 0.0) + seconds

    def trained(self, replies: Iterable[Message], seconds: float) -> None:
        """Count an exchange of training messages, and keep what the clients say about their time.

        Parameters
        ----------
        replies : Iterable[Message]
            What came back. A reply without timings that can be read or be true is passed over:
            nobody works longer than the exchange took. Nor waits longer, but clocks of different
            machines differ, so a waiting that is too long is shortened.
        seconds : float
            How long the exchange took, on the server's clock.
        """
        for phase, part in _divide(seconds, self._keep(replies, seconds)).items():
            self.spent(phase, part)

    def evaluated(self, replies: Iterable[Message], seconds: float) -> None:
        """Keep what the clients say about their time in an exchange of evaluation messages."""
        self._keep(replies, seconds)

    def take(self, seconds: float) -> RoundProfile | None:
        """Return the profile of the round that ends now, and begin the next one's.

        Parameters
        ----------
        seconds : float
            Wall-clock seconds of the round; what no phase accounts for is ``other``.

        Returns
        -------
        RoundProfile | None
            None if no client was asked for anything, as before the first round.
        """
        server, told = self._server, sorted(self._told, key=lambda one: one.client)
        self._server, self._told = {}, []
        if "clients" not in server:
            return None
        phases = {phase: server.get(phase, 0.0) for phase in SERVER_PHASES}
        phases["other"] = max(0.0, seconds - sum(phases.values()))
        names = dict.fromkeys(one.timings.worker for one in told)
        workers = {name: number for number, name in enumerate(names)}
        return RoundProfile(
            server={phase: _micro(value) for phase, value in phases.items()},
            clients=MessageTimes(
                id=[one.client for one in told],
                worker=[workers[one.timings.worker] for one in told],
                waiting=[_micro(one.timings.waiting) for one in told],
                seconds={
                    phase: [_micro(one.timings.seconds[phase]) for one in told]
                    for phase in CLIENT_PHASES
                },
            ),
        )

    def _keep(self, replies: Iterable[Message], seconds: float) -> list[ClientTimings]:
        told: dict[int, _Told] = {}
        for reply in replies:
            timings = _timings(reply, seconds)
            if timings is not None:
                told.setdefault(reply.metadata.src_node_id, _Told(_client(reply), timings))
        self._told += told.values()
        return [one.timings for one in told.values()]


class ProfiledStrategy(Strategy):
    """Any strategy, with the time of its phases given to a profiler; decides nothing.

    Parameters
    ----------
    strategy : Strategy
        The strategy that decides everything.
    profiler : RoundProfiler
        Gets the seconds.
    """

    def __init__(self, strategy: Strategy, profiler: RoundProfiler) -> None:
        self._strategy = strategy
        self._profiler = profiler
        self._sent = time.perf_counter()
        self._asked = 0

    def summary(self) -> None:
        """Log the strategy's settings."""
        self._strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the strategy does."""
        since = time.perf_counter()
        messages = list(self._strategy.configure_train(server_round, arrays, config, grid))
        self._sent = time.perf_counter()
        self._profiler.spent("configure", self._sent - since)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As the strategy does."""
        replies = list(replies)
        since = time.perf_counter()
        self._profiler.trained(replies, since - self._sent)
        try:
            return self._strategy.aggregate_train(server_round, replies)
        finally:
            self._profiler.spent("aggregate", time.perf_counter() - since)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the strategy does."""
        self._sent = time.perf_counter()
        messages = list(self._strategy.configure_evaluate(server_round, arrays, config, grid))
        self._asked = len(messages)
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """As the strategy does."""
        replies = list(replies)
        self._profiler.evaluated(replies, time.perf_counter() - self._sent)
        metrics = self._strategy.aggregate_evaluate(server_round, replies)
        if self._asked:
            self._profiler.spent("client_evaluation", time.perf_counter() - self._sent)
        return metrics


def _divide(exchange: float, told: Sequence[ClientTimings]) -> dict[str, float]:
    """Divide an exchange of messages into the ways there and back and the clients' work between."""
    if not told:
        return {"clients": exchange}
    begin = min(timings.waiting for timings in told)
    end = min(max(timings.waiting + timings.busy for timings in told), exchange)
    return {"send": begin, "clients": end - begin, "collect": exchange - end}


def _timings(reply: Message, exchange: float) -> ClientTimings | None:
    """Read a reply's timings; None where there are none, or none that can be true."""
    if not reply.has_content():
        return None
    record = reply.content.config_records.get(TIMINGS_RECORD)
    if record is None:
        return None
    try:
        timings = ClientTimings.decode(record)
    except ValueError:
        return None
    if timings.busy > exchange:
        return None
    return replace(timings, waiting=min(timings.waiting, exchange - timings.busy))


def _client(reply: Message) -> int:
    """Return the client's stable identity where it gives one, else its node's id."""
    record = reply.content.config_records.get(IDENTITY_RECORD)
    identity = None if record is None else record.get(IDENTITY_KEY)
    if isinstance(identity, int) and not isinstance(identity, bool) and identity >= 0:
        return identity
    return reply.metadata.src_node_id


def _micro(seconds: float) -> float:
    """Round to microseconds: finer digits are noise that makes the record long."""
    return round(seconds, 6)
