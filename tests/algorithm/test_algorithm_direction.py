"""The direction signal, against inner products written out by hand."""

import pytest
import torch

from fedpw_flwr.algorithm.direction import (
    add_tensor_directions,
    direction_shares,
    direction_size,
)


def test_direction_is_the_inner_product_with_the_sum_of_updates() -> None:
    start = torch.tensor([1.0, 2.0])
    updates = [[3.0, 0.0], [1.0, 1.0], [-1.0, 1.0]]
    directions = [0.0, 0.0, 0.0]
    add_tensor_directions(directions, start, [start - torch.tensor(u) for u in updates])
    # The updates sum to (3, 2).
    assert directions == [3 * 3 + 0 * 2, 1 * 3 + 1 * 2, -1 * 3 + 1 * 2]


def test_shape_and_memory_layout_do_not_matter_to_a_direction() -> None:
    start = torch.zeros(2, 3)
    trained = -torch.arange(6.0).reshape(3, 2).T
    assert not trained.is_contiguous()
    directions = [0.0]
    add_tensor_directions(directions, start, [trained])
    assert directions == [0 + 1 + 4 + 9 + 16 + 25]


@pytest.mark.parametrize("directions", [[0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 2.0, -2.0]])
def test_shares_are_equal_where_directions_sum_to_zero(directions: list[float]) -> None:
    shares = direction_shares(torch.tensor(directions, dtype=torch.float64))
    assert shares.tolist() == [0.25] * 4


def test_size_is_the_squared_norm_of_the_mean_update() -> None:
    updates = [(3.0, 1.0), (1.0, 1.0), (-1.0, 4.0)]
    total = (3.0 + 1.0 - 1.0, 1.0 + 1.0 + 4.0)
    directions = [u * total[0] + v * total[1] for u, v in updates]
    mean = (total[0] / 3, total[1] / 3)
    size = direction_size(torch.tensor(directions, dtype=torch.float64))
    assert size == pytest.approx(mean[0] ** 2 + mean[1] ** 2)
