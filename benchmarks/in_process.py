"""A Grid whose clients answer in this process."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class InProcessGrid(Grid):
    """Have each message answered when it is pushed; a subclass says which nodes there are."""

    def __init__(self) -> None:
        self._ids = itertools.count()
        self._replies: dict[str, Message] = {}

    @abstractmethod
    def answer(self, message: Message) -> Message:
        """Return the reply of the node that a message is for."""

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

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        pushed = []
        for message in messages:
            pushed.append(f"message-{next(self._ids)}")
            self._replies[pushed[-1]] = self.answer(message)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(message_id) for message_id in message_ids]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))
