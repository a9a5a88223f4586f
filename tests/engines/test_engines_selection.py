"""The smallest magnitudes, and the largest scores, found by a bracket, are those of a sort."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedpw_flwr.engines.cpu import _consensus_set
from fedpw_flwr.engines.selection import SAMPLED, bracket, select, smallest_of

Magnitudes = NDArray[np.float32]
claim = settings(max_examples=60, deadline=None)


def normal(generator: np.random.Generator, entries: int) -> Magnitudes:
    return np.abs(generator.standard_normal(entries, dtype=np.float32))


def ties(generator: np.random.Generator, entries: int) -> Magnitudes:
    return generator.integers(0, 5, entries).astype(np.float32)


def mostly_zero(generator: np.random.Generator, entries: int) -> Magnitudes:
    return np.where(generator.random(entries) < 0.9, 0, normal(generator, entries)).astype("f4")


def many_scales(generator: np.random.Generator, entries: int) -> Magnitudes:
    return np.exp(generator.uniform(-40, 40, entries)).astype(np.float32)


def sorted_already(generator: np.random.Generator, entries: int) -> Magnitudes:
    return np.sort(normal(generator, entries))


def hidden_from_the_sample(generator: np.random.Generator, entries: int) -> Magnitudes:
    """Every entry that is sampled is large, all others are small."""
    magnitudes = normal(generator, entries)
    magnitudes[::SAMPLED] += 100
    return magnitudes


KINDS = (normal, ties, mostly_zero, many_scales, sorted_already, hidden_from_the_sample)


@pytest.mark.parametrize("kind", KINDS)
@claim
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_the_smallest_are_those_of_a_sort(
    kind: Callable[[np.random.Generator, int], Magnitudes], seed: int, data: st.DataObject
) -> None:
    entries = data.draw(st.sampled_from([1, 2, 100, 8191, 8192, 9000, 70000]), "entries")
    count = data.draw(st.integers(1, entries), "count")
    magnitudes = kind(np.random.default_rng(seed), entries)
    before = magnitudes.copy()
    found = smallest_of(magnitudes, count)
    ordered = np.sort(magnitudes).astype(np.float64)
    assert found.threshold == ordered[count - 1]
    assert found.ties == np.count_nonzero(ordered[:count] == found.threshold)
    assert found.further_ties == np.count_nonzero(ordered[count:] == found.threshold)
    assert found.total == pytest.approx(ordered[:count].sum(), rel=1e-6)
    assert found.squares == pytest.approx(np.square(ordered[:count]).sum(), rel=1e-5)
    np.testing.assert_array_equal(magnitudes, before)


@claim
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_consensus_set_has_the_largest_scores_and_the_first_of_equal_ones(
    seed: int, data: st.DataObject
) -> None:
    entries = data.draw(st.sampled_from([1, 7, 1000, 8193, 70000]), "entries")
    size = data.draw(st.integers(0, entries), "size")
    scores = ties(np.random.default_rng(seed), entries)
    members = _consensus_set(scores, size)
    order = np.lexsort((np.arange(entries), -scores))
    np.testing.assert_array_equal(np.flatnonzero(members), np.sort(order[:size]))


def inside_the_bracket(magnitudes: Magnitudes, rate: float) -> float:
    """Share of the magnitudes that lie in the bracket, which has to hold the threshold."""
    count = int(rate * len(magnitudes))
    low, high = bracket(magnitudes[::SAMPLED].copy(), count, len(magnitudes))
    assert low <= np.partition(magnitudes, count - 1)[count - 1] <= high
    return float(np.mean((magnitudes >= low) & (magnitudes <= high)))


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.3, 0.9, 0.999])
def test_a_bracket_holds_the_threshold_and_little_else(rate: float) -> None:
    assert inside_the_bracket(normal(np.random.default_rng(1), 1 << 20), rate) < 0.035


@pytest.mark.parametrize("shape", [(512, 256, 1, 1), (512, 512, 3, 3), (64, 64, 3, 3)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_bracket_holds_where_channels_differ(shape: tuple[int, ...], axis: int) -> None:
    """Layers of 64, 128, ... channels, each with a scale of its own."""
    generator = np.random.default_rng(2)
    scales = np.exp(2 * generator.standard_normal(shape[axis], dtype=np.float32))
    layer = np.moveaxis(generator.standard_normal(shape, dtype=np.float32), axis, -1) * scales
    magnitudes = np.abs(np.moveaxis(layer, -1, axis)).reshape(-1)
    for rate in (0.1, 0.3, 0.7):
        inside_the_bracket(magnitudes, rate)


def test_a_bracket_beside_the_threshold_is_noticed() -> None:
    between = [np.arange(50, 61, dtype=np.float32)]
    assert select(between, 0, 0.0, 0.0, 99) is None
    assert select(between, 12, 0.0, 0.0, 99) is None
    found = select(between, 11, 1.0, 2.0, 99)
    assert found is not None
    assert (found.threshold, found.total, found.ties) == (60.0, 1.0 + 11 * 55, 1)
