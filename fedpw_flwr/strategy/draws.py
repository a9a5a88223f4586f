"""Which clients take part in a round: a function of the seed, the round and who is there.

Flower draws with the process's global generator, from which its heartbeats and retries take numbers
whenever they happen to come. Here every round has a generator of its own, so nothing else in the
process changes a draw, a run that goes on draws what it would have drawn, and all methods of a
comparison train the same clients.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedpw_flwr.strategy.listed_grid import ListedGrid

__all__ = ["MINIMA", "Draws", "Phase", "all_of", "share_of"]

Phase = Literal["train", "evaluate"]

MINIMA = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
"""Attributes of Flower's strategies that say how many nodes they need at least."""


class Draws:
    """Draws nodes for a round.

    Parameters
    ----------
    seed : int | None (default: None)
        The same seed draws the same. None: a number from `random`, taken at the first draw.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def draw(self, phase: Phase, server_round: int, nodes: Sequence[int], size: int) -> list[int]:
        """Draw `size` of the nodes, which are in an order that another run repeats."""
        if self.seed is None:
            self.seed = random.getrandbits(64)
        return random.Random(f"{self.seed} {phase} {server_round}").sample(list(nodes), size)


def share_of(strategy: FedAvg, phase: Phase) -> tuple[float, int]:
    """Return which share of the nodes a strategy takes in a phase, and how many at least."""
    if phase == "train":
        return strategy.fraction_train, strategy.min_train_nodes
    return strategy.fraction_evaluate, strategy.min_evaluate_nodes


@contextmanager
def all_of(grid: Grid, strategy: FedAvg, phase: Phase, nodes: Sequence[int]) -> Iterator[Grid]:
    """Let a strategy of Flower's, for a moment, see these nodes alone and take all of them."""
    fraction = f"fraction_{phase}"
    before = {name: getattr(strategy, name) for name in (fraction, *MINIMA)}
    setattr(strategy, fraction, 1.0)
    for name in MINIMA:
        setattr(strategy, name, min(before[name], len(nodes)))
    try:
        yield ListedGrid(grid, nodes)
    finally:
        for name, value in before.items():
            setattr(strategy, name, value)
