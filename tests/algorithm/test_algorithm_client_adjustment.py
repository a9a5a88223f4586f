"""What a client does to one tensor of its update, and the rates it is asked for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedpw_flwr.algorithm import Consensus
from fedpw_flwr.algorithm.adjustment import requested_rates
from fedpw_flwr.algorithm.client_step import (
    AdjustedTensors,
    adjust_tensor,
    is_adjustable,
    subtract_update,
)

claim = hypothesis_settings(max_examples=100, deadline=None)
entries = st.lists(st.integers(-16, 16).map(lambda value: value / 8), min_size=1, max_size=20)


def test_inputs_are_not_modified() -> None:
    start, trained = torch.ones(4), torch.tensor([4.0, 3.0, 2.5, 1.0])
    members = torch.tensor([True, True, False, False])
    update, _ = adjust_tensor(start, trained, 0.5, members, 1.5)
    kept = update.clone()
    subtract_update(start, update)
    assert torch.equal(update, kept)
    assert start.tolist() == [1.0] * 4
    assert trained.tolist() == [4.0, 3.0, 2.5, 1.0]
    assert members.tolist() == [True, True, False, False]


@claim
@given(entries, st.floats(0.0, 1.0), st.floats(1.01, 1.99), st.data())
def test_adjusting_is_masking_then_rescaling(
    values: list[float], rate: float, factor: float, data: st.DataObject
) -> None:
    size = len(values)
    chosen = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    trained = -torch.tensor(values, dtype=torch.float64)
    update, discarded = adjust_tensor(
        torch.zeros_like(trained), trained, rate, torch.tensor(chosen), factor
    )
    order = np.argsort(np.abs(values), kind="stable")[: math.floor(size * rate + 1e-9)]
    expected = np.array(values)
    expected[order] = 0.0
    expected[chosen] *= factor
    assert update.tolist() == pytest.approx(expected.tolist(), abs=1e-15)
    lost = np.abs(np.array(values)[order])
    assert float(discarded) == pytest.approx(lost.mean() if lost.size else 0.0)


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


def test_tensors_that_are_stored_by_columns_are_adjusted_in_the_order_of_their_entries() -> None:
    start = torch.zeros(4, 3).T
    trained = -torch.arange(1.0, 13.0).reshape(4, 3).T
    members = torch.zeros(12, dtype=torch.bool)
    members[-1] = True
    update, _ = adjust_tensor(start, trained, 0.25, members, 1.5)
    assert update.tolist() == [0.0, 4, 7, 10, 0, 5, 8, 11, 0, 6, 9, 18]
    assert subtract_update(start, update)[2].tolist() == [0.0, -6.0, -9.0, -18.0]


def test_only_floating_arrays_are_adjustable() -> None:
    half = torch.zeros(2, 3, dtype=torch.float16)
    assert all(map(is_adjustable, (torch.zeros(1), half, half.bfloat16())))
    numbers = torch.tensor(1.0), torch.tensor(3)
    others = torch.tensor([1, 2]), torch.tensor([True, False])
    for tensor in (*numbers, *others, torch.zeros(0), torch.zeros(3, 0, 2)):
        assert not is_adjustable(tensor)


def test_an_unadjusted_model_is_seen_as_its_client_would_have_sent_it() -> None:
    model = {
        "weight": torch.zeros(4),
        "bn.running_mean": torch.zeros(4),
        "scale": torch.tensor(1.0),
        "count": torch.tensor([1, 2]),
    }
    update = torch.tensor([4.0, 3.0, 2.0, 1.0])
    trained = {
        "weight": -update,
        "bn.running_mean": -update,
        "scale": torch.tensor(7.0),
        "count": torch.tensor([8, 9]),
    }
    members = {"weight": torch.tensor([True, False, False, True])}
    seen = AdjustedTensors(model, trained, 0.5, Consensus(2, members, {"weight": 1.5}))
    assert list(seen) == list(model)
    assert len(seen) == 4
    assert seen["weight"].tolist() == [-6.0, -3.0, 0.0, 0.0]
    assert seen["bn.running_mean"].tolist() == [-4.0, -3.0, 0.0, 0.0]
    assert seen["scale"].item() == 7.0
    assert seen["count"].tolist() == [8, 9]
    assert trained["weight"].tolist() == [-4.0, -3.0, -2.0, -1.0]


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
