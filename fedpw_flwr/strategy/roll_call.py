"""Who the nodes are: asked once, so that what is drawn by chance does not depend on node ids.

Flower's node ids change from run to run. Sampling in their order, and what was remembered of a
client under its identity, would not be the same in a run that is repeated or gone on with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpw_flwr.wire.records import IDENTITY_QUERY, identity_of

__all__ = ["RollCall"]

logger = logging.getLogger("flwr")

_TIMEOUT = 180.0
"""Seconds to wait for an answer, once: nodes that were lost a moment ago never give one, and on a
busy machine the first answer of a simulation waits for Ray's workers to start."""


class RollCall:
    """Knows which client is at which node, and asks those that it does not know."""

    def __init__(self) -> None:
        self._clients: dict[int, int | None] = {}

    def take(self, grid: Grid, nodes: Iterable[int]) -> Mapping[int, int]:
        """Ask the nodes that are new, once; return the identity of those that gave one.

        Parameters
        ----------
        grid : Grid
            The grid.
        nodes : Iterable[int]
            Ids of the nodes that are connected.

        Returns
        -------
        Mapping[int, int]
            Identity by node id.
        """
        nodes = list(nodes)
        new = [node for node in nodes if node not in self._clients]
        if new:
            messages = [Message(RecordDict(), node, IDENTITY_QUERY) for node in new]
            self._clients.update(dict.fromkeys(new))
            for reply in grid.send_and_receive(messages, timeout=_TIMEOUT):
                if reply.has_content():
                    self._clients[reply.metadata.src_node_id] = _stated(reply.content)
            silent = [node for node in new if self._clients[node] is None]
            if silent:
                logger.info(
                    "%s of %s new nodes do not say which client they are: they are sampled and "
                    "remembered by node id, which another run would not repeat",
                    len(silent),
                    len(new),
                )
        known = {node: self._clients[node] for node in nodes}
        return {node: client for node, client in known.items() if client is not None}

    def ordered(self, grid: Grid, nodes: Iterable[int]) -> list[int]:
        """Order nodes by their clients' identities; those that give none last, by node id."""
        nodes = sorted(nodes)
        clients = self.take(grid, nodes)
        return sorted(nodes, key=lambda node: (node not in clients, clients.get(node, node)))


def _stated(content: RecordDict) -> int | None:
    try:
        return identity_of(content)
    except ValueError:
        # It will be said when the node's reply is set aside for it.
        return None
