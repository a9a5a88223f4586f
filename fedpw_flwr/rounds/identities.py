"""Which client answers from which node, as far as its replies have shown."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from fedpw_flwr.rounds.faults import BadReply
from fedpw_flwr.rounds.replies import TrainReply

logger = logging.getLogger("flwr")


class Identities:
    """The clients of a federation, by client id.

    `owners` and `homes` are the nodes of each client's newest and first usable reply. `introduced`
    is the client that a node only says to be, by node: that counts for no more than what it is
    asked for.
    """

    def __init__(self) -> None:
        self.owners: dict[int, int] = {}
        self.homes: dict[int, int] = {}
        self.introduced: dict[int, int] = {}
        self._empty: set[int] = set()

    def to_dict(self) -> dict[str, Any]:
        """Return what replies have shown, as JSON can hold it."""
        return {"owners": dict(self.owners), "homes": dict(self.homes)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Return the identities that `to_dict` returned; other keys are left alone.

        KeyError, TypeError, AttributeError or ValueError if they are not such.
        """
        identities = cls()
        identities.owners = {int(client): int(node) for client, node in saved["owners"].items()}
        identities.homes = {int(client): int(node) for client, node in saved["homes"].items()}
        return identities

    def by_node(self) -> dict[int, int]:
        """Return the client of every node that is known by a reply or by what it says."""
        return {**self.introduced, **{node: client for client, node in self.owners.items()}}

    def note(self, phase: str, server_round: int, replies: Sequence[TrainReply]) -> None:
        """Take note of where usable replies came from, and log who has moved."""
        for reply in replies:
            before = self.owners.get(reply.client, reply.node_id)
            if before != reply.node_id:
                logger.info(
                    "%s: round %s, client %s answers from node %s, before it was at node %s",
                    *(phase, server_round, reply.client, reply.node_id, before),
                )
            self.owners[reply.client] = reply.node_id
            self.homes.setdefault(reply.client, reply.node_id)

    def log(
        self,
        phase: str,
        server_round: int,
        usable: int,
        bad: Sequence[BadReply],
        silent: Iterable[int],
    ) -> None:
        """Log how many replies a phase of a round had, what was wrong, and who has none.

        A client without data is named once in a run: there is nothing to be done about it.
        """
        fates = [reply.fate for reply in bad]
        logger.info(
            "%s: Received %s usable results, %s quarantined and %s failures",
            *(phase, usable, fates.count("quarantined"), fates.count("failed")),
        )
        for reply in bad:
            who = _who(reply.client, reply.node_id)
            if reply.fate != "empty":
                told = (who, reply.fate, _in_the_log(reply.reason))
                logger.warning("%s: round %s, %s %s: %s", phase, server_round, *told)
            elif reply.client not in self._empty:
                self._empty.add(reply.client)
                logger.info(
                    "%s: round %s, %s has no data (%s): it is left out of rounds, without a fault",
                    *(phase, server_round, who, reply.reason),
                )
        # A strategy sees no more than the replies it is given: a subclass may have kept some.
        client_of = self.by_node()
        for node in sorted(silent):
            logger.warning(
                "%s: round %s, %s has no reply here: it did not answer, or a subclass of the "
                "strategy left its reply out",
                *(phase, server_round, _who(client_of.get(node, node), node)),
            )


def _in_the_log(reason: str) -> str:
    """Shorten and indent a text that a client may have written: no line of it is one of ours."""
    shown = reason if len(reason) < 2000 else f"{reason[:2000]} ..."
    return "\n\t".join(
        "".join(sign if sign.isprintable() else " " for sign in line) for line in shown.splitlines()
    )


def _who(client: int, node: int) -> str:
    return f"node {node}" if client == node else f"client {client} (node {node})"
