"""A grid of which only certain nodes are seen, in a certain order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

__all__ = ["ListedGrid"]


class ListedGrid(Grid):
    """A grid that lists the given nodes, and is the real one for the rest.

    Parameters
    ----------
    grid : Grid
        The real one.
    nodes : Sequence[int]
        The ids it lists.
    """

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        self._grid = grid
        self._nodes = tuple(nodes)

    def __getattr__(self, name: str) -> Any:
        """As the real one has it."""
        if name.startswith("__") or name == "_grid":
            raise AttributeError(name)
        return getattr(self._grid, name)

    def get_node_ids(self) -> list[int]:
        """List the nodes."""
        return list(self._nodes)

    def set_run(self, run: Run) -> None:
        """As the real one does."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """As the real one does."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As the real one does."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the real one does."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the real one does."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As the real one does."""
        return self._grid.send_and_receive(messages, timeout=timeout)
