"""What a client does to one tensor of its update, and the rates it is asked for."""

import pytest
import torch

from fedpw_flwr.algorithm.adjustment import requested_rates
from fedpw_flwr.algorithm.client_step import (
    AdjustedTensors,
    adjust_tensor,
    is_adjustable,
    subtract_update,
)


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 3, 2), (12, 1)])
def test_an_update_taken_from_the_start_has_its_shape_and_dtype(shape: tuple[int, ...]) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        start = torch.arange(12.0).reshape(shape).to(dtype)
        update, _ = adjust_tensor(start, start - 1, 0.25)
        assert update.shape == (12,)
        assert update.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        moved = subtract_update(start, update)
        assert moved.shape == shape
        assert moved.dtype == dtype
        # Equal magnitudes are masked by lower index first.
        assert (start - moved).reshape(-1).tolist() == [0.0] * 3 + [1.0] * 9


def test_only_floating_arrays_are_adjustable() -> None:
    half = torch.zeros(2, 3, dtype=torch.float16)
    assert all(map(is_adjustable, (torch.zeros(1), half, half.bfloat16())))
    numbers = torch.tensor(1.0), torch.tensor(3)
    others = torch.tensor([1, 2]), torch.tensor([True, False])
    for tensor in (*numbers, *others, torch.zeros(0), torch.zeros(3, 0, 2)):
        assert not is_adjustable(tensor)


def test_discarded_magnitude_may_be_asked_before_or_after_the_tensor() -> None:
    model = {"weight": torch.zeros(4), "scale": torch.tensor(1.0), "count": torch.tensor(3)}
    trained = {**model, "weight": -torch.tensor([4.0, 3.0, 2.0, 1.0])}
    before, after = (AdjustedTensors(model, trained, 0.5, None) for _ in range(2))
    assert before.discarded_magnitude("weight") == 1.5
    assert after["weight"].tolist() == [-4.0, -3.0, 0.0, 0.0]
    assert after.discarded_magnitude("weight") == 1.5
    assert before.discarded_magnitude("scale") == 0.0
    assert before.discarded_magnitude("count") == 0.0


def test_rates_by_hand() -> None:
    assert requested_rates([], 0.3, 10.0) == []
    assert requested_rates([None, None], 0.3, 10.0) == [0.3, 0.3]
    assert requested_rates([1.0, None, 3.0], 0.3, 10.0) == pytest.approx([0.45, 0.3, 0.15])
    assert requested_rates([0.0, 0.0], 0.3, 10.0) == pytest.approx([0.3, 0.3])
    # A loss of 0 counts as a thousandth of the mean, here 0.0005.
    assert requested_rates([0.0, 1.0], 0.3, None) == pytest.approx(
        [0.3 * 2000 / 1000.5, 0.3 / 1000.5]
    )
    assert requested_rates([0.001, 1.0, 1.0, 1.0], 0.3, None)[0] == 1.0
    # Within a factor of 2 of the median: 1/2, 1, 1 and 2, with inverses 2, 1, 1 and 1/2.
    bounded = requested_rates([0.001, 1.0, 1.0, 9.0], 0.3, 2.0)
    assert bounded == pytest.approx([0.3 * value / 1.125 for value in (2.0, 1.0, 1.0, 0.5)])
