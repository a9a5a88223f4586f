"""Who is drawn for a round is a function of the seed, the round and who is there."""

from __future__ import annotations

import random

from fedpw_flwr.strategy.sampling import NodeSampling

NODES = list(range(100, 120))


def test_a_seed_draws_the_same_nodes_whatever_else_takes_random_numbers() -> None:
    first = NodeSampling(seed=3).draw("train", 7, NODES, 5)
    random.seed()
    second = NodeSampling(seed=3)
    second.draw("train", 1, NODES, 9)
    assert second.draw("train", 7, NODES, 5) == first
    assert len(set(first)) == 5
    assert set(first) <= set(NODES)


def test_rounds_phases_and_seeds_draw_differently_and_every_node_as_often_as_any_other() -> None:
    draws = [
        NodeSampling(seed).draw(phase, server_round, NODES, 10)
        for seed, server_round in ((0, 1), (0, 2), (1, 1))
        for phase in ("train", "evaluate")
    ]
    assert len({tuple(drawn) for drawn in draws}) == 6
    sampling, counts = NodeSampling(seed=0), dict.fromkeys(NODES, 0)
    for server_round in range(2000):
        for node in sampling.draw("train", server_round, NODES, 2):
            counts[node] += 1
    # 200 expected, with a standard deviation of 13.4: five of them.
    assert all(133 <= count <= 267 for count in counts.values())


def test_without_a_seed_the_global_generator_decides_once() -> None:
    random.seed(4)
    first = NodeSampling()
    one, two = (first.draw("train", server_round, NODES, 5) for server_round in (1, 2))
    random.seed(4)
    again = NodeSampling()
    assert again.draw("train", 1, NODES, 5) == one
    random.seed(99)
    assert again.draw("train", 2, NODES, 5) == two
    assert again.seed == first.seed
