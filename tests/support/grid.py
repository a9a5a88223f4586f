"""A federation inside one process: a Grid over plain Python clients, and its training rounds.

Messages, records and strategies are the real ones; only the network is missing. A client is a
function from the message it was sent to the replies it gives: one, several, or none.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore.run import Run

Client = Callable[[Message], Iterable[Message]]

# Flower's legacy server asks each client in a thread of its own. Here they all read arrays in one
# process, where NumPy parses every header with ast: threads that do so at once now and then break
# each other in CPython before 3.11.8 (github.com/python/cpython/issues/106905).
ONE_AT_A_TIME = threading.Lock()


@dataclass
class ClientsGrid(Grid):
    """Deliver each message to its client at once and hand back the replies.

    `arrange` puts a round's replies in the order in which the server shall see them.
    """

    clients: Mapping[int, Client]
    arrange: Callable[[list[Message]], Sequence[Message]] = list
    sent: list[Message] = field(default_factory=list)
    times_asked_for_nodes: int = 0

    def __post_init__(self) -> None:
        self._ids = itertools.count(1)
        self._replies: dict[str, list[Message]] = {}

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        self.times_asked_for_nodes += 1
        return list(self.clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = []
        for message in messages:
            # Flower's grids name a message when it is pushed, on the object they were given.
            message.metadata.__dict__["_message_id"] = f"message-{next(self._ids)}"
            self.sent.append(message)
            self._replies[message.metadata.message_id] = self._answers(message)
            pushed.append(message.metadata.message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [reply for message in message_ids for reply in self._replies.pop(message, [])]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.arrange(list(self.pull_messages(self.push_messages(messages))))

    def _answers(self, message: Message) -> list[Message]:
        try:
            with ONE_AT_A_TIME:
                return list(self.clients[message.metadata.dst_node_id](message))
        except Exception as error:
            return [Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=message)]


def running(app: ClientApp, context: Context) -> Client:
    """A client that runs a ClientApp, always in the same context."""
    return lambda message: [app(message, context)]


def ask(
    strategy: Strategy, grid: ClientsGrid, arrays: ArrayRecord, server_round: int
) -> list[Message]:
    """The first half of a training round: the replies that came back, as the grid arranged them."""
    messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
    return list(grid.send_and_receive(messages))


def train_round(
    strategy: Strategy, grid: ClientsGrid, arrays: ArrayRecord, server_round: int = 1
) -> tuple[ArrayRecord, MetricRecord]:
    """One training round as `Strategy.start` runs it."""
    new_arrays, metrics = strategy.aggregate_train(
        server_round, ask(strategy, grid, arrays, server_round)
    )
    assert new_arrays is not None
    assert metrics is not None
    return new_arrays, metrics
