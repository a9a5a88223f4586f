"""From a trained model to what the client sends: masking, rescaling, packing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clients import Arrays, reference_sent, reference_update, request_entries

from fedpw_flwr.client.masking import adjust_reply
from fedpw_flwr.client.request import ReceivedRequest, take_request
from fedpw_flwr.wire.adjustment import AdjustmentReport
from fedpw_flwr.wire.packing import packed_size

RATES = (0.0, 0.1, 0.29, 0.3, 1 / 3, 0.5, 0.9, 1.0)

COUNTER = np.array([3]), np.array([4])
"""A counter before and after training: an update that is never masked to nothing."""

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"
)
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


def received(*arguments: Any, **named: Any) -> ReceivedRequest:
    request = take_request(request_entries(*arguments, **named))
    assert request is not None
    return request


def adjusted(
    start: Arrays, after: Arrays, request: ReceivedRequest, device: str = "cpu", **named: Any
) -> tuple[Arrays, AdjustmentReport]:
    sent, report = adjust_reply(start, after, request, device, **named)
    assert report is not None
    return sent, AdjustmentReport.decode(report, len(start))


def assert_same(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> None:
    """Two arrays agree in shape, dtype and every bit."""
    assert isinstance(first, np.ndarray)
    assert (first.shape, first.dtype) == (second.shape, second.dtype)
    assert first.tobytes() == second.tobytes()


def noise(shape: tuple[int, ...], seed: int = 0, dtype: Any = np.float32) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@st.composite
def trainings(draw: st.DrawFn) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """A tensor before and after training; in half of them many entries move equally far."""
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16]))
    shape = draw(st.sampled_from([(1,), (10,), (100,), (4, 7), (2, 3, 5)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        start = rng.standard_normal(shape).astype(dtype)
        return start, start + rng.standard_normal(shape).astype(dtype)
    steps = rng.choice([-0.25, -0.125, 0.125, 0.25], size=shape)
    return np.zeros(shape, dtype), steps.astype(dtype)


@pytest.mark.parametrize("device", DEVICES)
@given(
    training=trainings(),
    rate=st.one_of(st.sampled_from(RATES), st.floats(0.0, 1.0)),
    factor=st.floats(1.0, 2.0, exclude_min=True, exclude_max=True),
    rescaled=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None)
def test_an_update_is_masked_and_rescaled_as_the_formulas_say(
    device: str,
    training: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    rate: float,
    factor: float,
    rescaled: bool,
    seed: int,
) -> None:
    start, after = training
    members = np.random.default_rng(seed).random(start.size) < 0.3 if rescaled else None
    update, discarded = reference_update(start, after, rate, members, factor)
    consensus = {} if members is None else {0: (members, factor)}
    sent, report = adjusted(
        [start, COUNTER[0]], [after, COUNTER[1]], received(rate, consensus), device
    )
    as_trained = rate == 0 and members is None
    assert_same(sent[0], after if as_trained else reference_sent(start, update))
    assert report.discarded[0] == pytest.approx(discarded, rel=1e-5)
    assert report.rate == rate
    assert report.consensus_round == (2 if rescaled else None)


@needs_cuda
@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_cuda_and_the_cpu_send_the_same_bits(upload: str) -> None:
    starts = [noise((300, 500), 1), np.zeros(10_000, np.float32), noise((7,), 2, np.float64)]
    afters = [starts[0] + noise((300, 500), 3), np.repeat(noise((100,), 4), 100), starts[2] + 1]
    members = np.random.default_rng(5).random(150_000) < 0.3
    request = received(0.37, {0: (members, 1.7)}, upload)
    expected, on_cpu = adjusted(starts, afters, request)
    sent, report = adjusted(starts, afters, request, "cuda")
    for first, second in zip(sent, expected, strict=True):
        assert_same(first, second)
    assert report.discarded == pytest.approx(on_cpu.discarded, rel=1e-5)


NEVER_ADJUSTED: dict[str, tuple[Any, Any]] = {
    **{
        f"{dtype}": (np.arange(40).astype(dtype), (np.arange(40) % 2).astype(dtype))
        for dtype in ("int64", "int32", "uint8", "bool")
    },
    **{
        f"0-d {dtype}": (np.array(1.0, dtype), np.array(3.0, dtype))
        for dtype in ("float16", "float32", "float64", "int64")
    },
    "empty": (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)),
}


@pytest.mark.parametrize("kind", NEVER_ADJUSTED)
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_integers_single_numbers_and_empty_arrays_are_sent_as_trained(
    kind: str, rate: float, upload: str
) -> None:
    start, after = NEVER_ADJUSTED[kind]
    request = received(rate, upload=upload)
    sent, report = adjusted(
        [start, np.zeros(100, np.float32), COUNTER[0]], [after, noise((100,)), COUNTER[1]], request
    )
    assert_same(sent[0], after)
    assert report.discarded[0] == 0.0
    assert 0 not in report.packed


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "Fortran order": np.asfortranarray,
    "every other column": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "reversed": lambda array: array[::-1].copy()[::-1],
    "transposed view": lambda array: array.T.copy().T,
    "read-only": read_only,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_the_layout_of_arrays_in_memory_does_not_matter(layout: str, upload: str) -> None:
    lay = LAYOUTS[layout]
    start, after = noise((12, 10), 1), noise((12, 10), 2)
    members = np.random.default_rng(3).random(120) < 0.3
    request = received(0.3, {0: (members, 1.5)}, upload)
    expected, _ = adjusted([start], [after], request)
    for before, trained in ((lay(start), after), (start, lay(after)), (lay(start), lay(after))):
        sent, _ = adjusted([before], [trained], request)
        assert_same(sent[0], expected[0])


@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_nothing_that_was_given_is_modified(upload: str) -> None:
    starts, afters = [noise((100,), 1), COUNTER[0]], [noise((100,), 2), COUNTER[1]]
    before = [array.tobytes() for array in starts + afters]
    sent, _ = adjusted(
        starts, afters, received(0.5, {0: (np.ones(100, np.bool_), 1.5)}, upload=upload)
    )
    assert [array.tobytes() for array in starts + afters] == before
    assert not np.shares_memory(sent[0], starts[0])


def test_half_precision_saturates_instead_of_overflowing() -> None:
    start, after = np.array([60000, 0], np.float16), np.array([-60000, 1], np.float16)
    sent, _ = adjusted([start], [after], received(0.0, {0: (np.array([True, False]), 1.9)}))
    np.testing.assert_array_equal(sent[0], np.array([-65504, 1], np.float16))


@pytest.mark.parametrize(
    ("value", "rate"),
    [(np.nan, 0.3), (np.nan, 1.0), (np.inf, 0.3), (np.inf, 1.0), (-np.inf, 0.3), (1e30, 0.3)],
)
@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_a_diverged_model_goes_to_the_server_as_trained(
    value: float, rate: float, upload: str
) -> None:
    after = [noise((100,), 2), COUNTER[1]]
    after[0][17:19] = value  # the norm of 1e30 is none that float32 can hold
    request = received(rate, upload=upload)
    sent, report = adjust_reply([noise((100,), 1), COUNTER[0]], after, request, "cpu")
    assert report is None
    for array, expected in zip(sent, after, strict=True):
        assert_same(array, expected)


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_an_update_masked_to_nothing_is_left_to_the_server(rate: float) -> None:
    start = noise((100,), 1)
    after = start + 1 if rate == 1 else start.copy()
    sent, report = adjust_reply([start], [after], received(rate), "cpu")
    assert report is None
    assert_same(sent[0], after)


def test_a_counter_that_moved_is_an_update() -> None:
    start = noise((10,), 1)
    sent, report = adjusted([start, COUNTER[0]], [start + 1, COUNTER[1]], received(1.0))
    assert_same(sent[0], start)
    assert_same(sent[1], COUNTER[1])
    assert report.discarded == pytest.approx((1.0, 0.0), rel=1e-6)


def test_an_array_that_is_no_smaller_packed_stays_dense() -> None:
    small, large = np.zeros(3, np.float32), np.zeros(1000, np.float32)
    sent, report = adjusted(
        [small, large, large],
        [small + 1, large + 1, noise((1000,))],
        received(0.0, upload="packed"),
    )
    assert report.packed == ()
    assert_same(sent[0], small + 1)
    assert_same(sent[1], large + 1)
    sent, report = adjusted(
        [small, large], [small + 1, noise((1000,))], received(0.3, upload="packed")
    )
    assert report.packed == (1,)
    assert sent[1].nbytes == packed_size(1000, 700, "float32") < 3000
