"""Which nodes take part in a phase of a round: waited for, put in order, drawn.

Flower's strategies draw from the nodes in the order of their ids, which are new in every run, and
wait for ever. Every strategy of this package takes its nodes from here, so that all methods of a
comparison train the same clients in the same round, and a seed gives one result.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedpw_flwr.rounds.attendance import Attendance, WhenMissing, minima_of_at_most
from fedpw_flwr.strategy.draws import MINIMA, Draws, Phase, all_of, share_of
from fedpw_flwr.strategy.listed_grid import ListedGrid
from fedpw_flwr.strategy.roll_call import RollCall
from fedpw_flwr.wire.records import shows_answers

__all__ = ["NodeSampling"]

logger = logging.getLogger("flwr")


class NodeSampling:
    """Chooses the nodes of a phase for a strategy of Flower's.

    Parameters
    ----------
    seed : int | None (default: None)
        Decides which nodes are drawn, where some are. None: a number from `random` at the first
        draw.
    wait_for_clients : float | None (default: None)
        Seconds to wait for as many nodes as are needed, counted from when there were last enough.
        None waits for ever, as Flower does.
    when_missing : "stop" | "continue" (default: "stop")
        What to do after it.

    Attributes
    ----------
    draws : Draws
        Draws the nodes.
    asks_identities : bool
        Whether nodes are asked who they are: then some are drawn in the order of their clients'
        identities, which another run repeats at other nodes, and not in that of node ids. False
        until it is set, or every node that is connected has shown in a reply that it answers
        (`numpy_client_app` with numbered clients): a ClientApp without a function for the question
        logs an error, before any mod of its could answer.

    Raises
    ------
    ValueError, TypeError
        As `Attendance`.
    """

    def __init__(
        self,
        seed: int | None = None,
        wait_for_clients: float | None = None,
        when_missing: WhenMissing = "stop",
    ) -> None:
        self.draws = Draws(seed)
        self.asks_identities = False
        self._answering: set[int] = set()
        self._roll_call = RollCall()
        self._attendance = Attendance(wait_for_clients, when_missing)

    def identities(self, grid: Grid, nodes: Iterable[int]) -> Mapping[int, int]:
        """Return who is at those of the nodes that say it when they may be asked, each once."""
        return self._roll_call.take(grid, nodes) if self.asks_identities else {}

    def note_replies(self, replies: Mapping[int, RecordDict]) -> None:
        """Note which nodes show in their reply that they answer who they are."""
        self._answering |= {node for node, content in replies.items() if shows_answers(content)}

    def saved_state(self) -> dict[str, Any]:
        """Return what a run that goes on must know, as JSON can hold it."""
        return {"seed": self.draws.seed, "asks_identities": self.asks_identities}

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Set it to what `saved_state` returned, among other keys."""
        self.draws = Draws(state.get("seed"))
        self.asks_identities = self.asks_identities or state.get("asks_identities") is True

    @contextmanager
    def taking_part(
        self, strategy: FedAvg, phase: Phase, server_round: int, grid: Grid
    ) -> Iterator[Grid]:
        """Wait for the nodes that are needed, and list those that are to take part.

        Parameters
        ----------
        strategy : FedAvg
            Says which share of the nodes it takes and how many at least; while the context lasts it
            takes all that are listed.
        phase : "train" | "evaluate"
            What for.
        server_round : int
            The round.
        grid : Grid
            Knows the nodes that are connected.

        Yields
        ------
        Grid
            The grid, with the nodes that are to take part alone.

        Raises
        ------
        TooFewClientsError
            If too few nodes were there for too long.
        """
        fraction, least = share_of(strategy, phase)
        if fraction == 0.0:
            yield grid
            return
        needed = max(strategy.min_available_nodes, least)
        nodes = self._attendance.wait(grid.get_node_ids, needed)
        if fraction == 1.0:
            with minima_of_at_most(strategy, MINIMA, len(nodes)):
                yield ListedGrid(grid, nodes)
            return
        self.asks_identities = self.asks_identities or self._answering.issuperset(nodes)
        ordered = self._roll_call.ordered(grid, nodes) if self.asks_identities else sorted(nodes)
        size = min(len(nodes), max(int(len(nodes) * fraction), least))
        drawn = self.draws.draw(phase, server_round, ordered, size)
        logger.info("configure_%s: Drew %s nodes (out of %s)", phase, size, len(nodes))
        with all_of(grid, strategy, phase, drawn) as listed:
            yield listed
