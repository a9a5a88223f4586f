"""Any strategy, made repeatable: whom it draws and in which order it adds up depend on no node id.

Flower's strategies draw from the nodes in the order of their ids, which are new in every run, and
add replies up as these arrive. FedPW sees to both itself; beside the others stands this wrapper, so
that all methods of a comparison train the same clients in the same round, and a seed gives one
result.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from fedpw_flwr.lab.app.strategy_wrapper import StrategyWrapper
from fedpw_flwr.strategy.sampling import NodeSampling
from fedpw_flwr.wire.records import identity_of

__all__ = ["OrderedStrategy"]


class OrderedStrategy(StrategyWrapper):
    """A strategy that sees nodes and replies in the order of the clients' identities.

    Parameters
    ----------
    strategy : Strategy
        The strategy that decides everything.
    seed : int
        Decides which clients are drawn.
    """

    def __init__(self, strategy: Strategy, seed: int) -> None:
        super().__init__(strategy)
        self._sampling = NodeSampling(seed)
        self._sampling.asks_identities = True

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As the strategy does, with the nodes drawn for it where it takes some of them."""
        strategy = self._strategy
        if not isinstance(strategy, FedAvg):
            return super().configure_train(server_round, arrays, config, grid)
        with self._sampling.taking_part(strategy, "train", server_round, grid) as present:
            return list(super().configure_train(server_round, arrays, config, present))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As the strategy does, with the replies in order."""
        return super().aggregate_train(server_round, sorted(replies, key=_place))


def _place(reply: Message) -> tuple[bool, int]:
    """Order by identity; replies that state none come last, by node."""
    node = reply.metadata.src_node_id
    try:
        stated = identity_of(reply.content) if reply.has_content() else None
    except ValueError:
        stated = None
    return (stated is None, node if stated is None else stated)
