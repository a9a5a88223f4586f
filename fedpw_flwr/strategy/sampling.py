"""Which nodes take part in a phase of a round: waited for, put in order, drawn.

Flower's strategies draw from the nodes in the order of their ids, which are new in every run, with
a generator that heartbeats share, and wait for ever. Every strategy of this package takes its nodes
from here: all methods of a comparison train the same clients in the same round, a seed gives one
result, and a run that goes on draws what it would have drawn.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpw_flwr.rounds.attendance import Attendance, WhenMissing
from fedpw_flwr.wire.records import IDENTITY_QUERY, identity_of, shows_answers

logger = logging.getLogger("flwr")

Phase = Literal["train", "evaluate"]

ANSWER_TIMEOUT = 180.0
"""Seconds to wait for an answer, once: nodes that were lost a moment ago never give one, and on a
busy machine the first answer of a simulation waits for Ray's workers to start."""


class NodeSampling:
    """Chooses the nodes of a phase, and knows which client is at which node.

    Options are those of `fedpw_flwr.FedPW`. Where `asks_identities` is set, nodes are asked which
    client they are: then some are drawn in the order of client ids, which another run repeats at
    other nodes, and not in that of node ids. It is False until somebody sets it, or every node that
    is connected has shown in a reply that it answers (`numpy_client_app` with numbered clients): a
    ClientApp without a function for the question logs an error, before any mod of its could answer.
    """

    def __init__(
        self,
        seed: int | None = None,
        wait_for_clients: float | None = None,
        when_missing: WhenMissing = "stop",
    ) -> None:
        self.seed = seed
        self.asks_identities = False
        self._clients: dict[int, int | None] = {}
        self._answering: set[int] = set()
        self._attendance = Attendance(wait_for_clients, when_missing)

    def choose(
        self, grid: Grid, phase: Phase, server_round: int, fraction: float, least: int, needed: int
    ) -> list[int]:
        """Wait for the nodes that are needed, and return those that are to take part."""
        nodes = chosen = self._attendance.wait(grid.get_node_ids, max(needed, least))
        if fraction < 1.0:
            self.asks_identities = self.asks_identities or self._answering.issuperset(nodes)
            size = min(len(nodes), max(int(len(nodes) * fraction), least))
            chosen = self.draw(phase, server_round, self._ordered(grid, nodes), size)
        logger.info("configure_%s: Sampled %s nodes (out of %s)", phase, len(chosen), len(nodes))
        return chosen

    def draw(self, phase: Phase, server_round: int, nodes: Sequence[int], size: int) -> list[int]:
        """Draw `size` of the nodes, which are in an order that another run repeats."""
        if self.seed is None:
            self.seed = random.getrandbits(64)
        return random.Random(f"{self.seed} {phase} {server_round}").sample(list(nodes), size)

    def clients_at(self, grid: Grid, nodes: Iterable[int]) -> dict[int, int]:
        """Return the client by node for those that tell, where nodes may be asked; each once."""
        if not self.asks_identities:
            return {}
        nodes = list(nodes)
        new = [node for node in nodes if node not in self._clients]
        if new:
            messages = [Message(RecordDict(), node, IDENTITY_QUERY) for node in new]
            self._clients.update(dict.fromkeys(new))
            for reply in grid.send_and_receive(messages, timeout=ANSWER_TIMEOUT):
                # An id that can be none is said when the node's reply is set aside for it.
                with suppress(ValueError):
                    if reply.has_content():
                        self._clients[reply.metadata.src_node_id] = identity_of(reply.content)
            silent = [node for node in new if self._clients[node] is None]
            if silent:
                logger.info(
                    "%s of %s new nodes do not say which client they are: they are sampled and "
                    "remembered by node id, which another run would not repeat",
                    len(silent),
                    len(new),
                )
        return {node: client for node in nodes if (client := self._clients[node]) is not None}

    def note_replies(self, replies: Mapping[int, RecordDict]) -> None:
        """Note which nodes show in their reply that they answer who they are."""
        self._answering |= {node for node, content in replies.items() if shows_answers(content)}

    def saved_state(self) -> dict[str, Any]:
        """Return what a run that goes on must know, as JSON can hold it."""
        return {"seed": self.seed, "asks_identities": self.asks_identities}

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Set it to what `saved_state` returned, among other keys."""
        self.seed = state.get("seed")
        self.asks_identities = self.asks_identities or state.get("asks_identities") is True

    def _ordered(self, grid: Grid, nodes: Iterable[int]) -> list[int]:
        """Order nodes by client id; those that give none last, by node id."""
        nodes = sorted(nodes)
        clients = self.clients_at(grid, nodes)
        return sorted(nodes, key=lambda node: (node not in clients, clients.get(node, node)))
