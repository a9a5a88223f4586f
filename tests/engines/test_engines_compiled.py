"""Compiled loops do what a plain formula says, on a laptop whose disk is full as well."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core import caching
from numpy.typing import NDArray

from fedpw_flwr.engines import compiled
from fedpw_flwr.wire.packing import _unpack

Float32s = NDArray[np.float32]
LENGTHS = [1, 7, 8, 9, 1000, 2047, 2048, 2049, 4096, 32767, 32769, 70001]
claim = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
lengths = st.sampled_from(LENGTHS)


def normal(seed: int, *shape: int) -> Float32s:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def whole_numbers(seed: int, *shape: int) -> Float32s:
    """Few values, so that many entries are equal and differences are exact."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


@claim
@given(seed=seeds, entries=lengths)
def test_updates_are_added_up_and_multiplied(seed: int, entries: int) -> None:
    start, trained, total = normal(seed, 3, entries)
    expected = total + (start - trained)
    compiled.add_update(start, trained, total)
    np.testing.assert_array_equal(total, expected)
    update = (start - trained).astype(np.float64)
    product, square = compiled.products(start, trained, total)
    scale = float(np.linalg.norm(update) * np.linalg.norm(total))
    assert product == pytest.approx(float(update @ total), abs=1e-5 * scale)
    assert square == pytest.approx(float(update @ update), rel=1e-5)


@pytest.mark.parametrize("draw", [normal, whole_numbers])
@pytest.mark.parametrize(
    ("low", "high"), [(0, np.inf), (1, 2), (2, 2), (0, 0), (100, 200), (0.001, np.inf)]
)
@settings(max_examples=8, deadline=None)
@given(seed=seeds, entries=lengths)
def test_what_is_below_a_bracket_is_summed_up_and_what_is_inside_collected(
    draw: Callable[..., Float32s], low: float, high: float, seed: int, entries: int
) -> None:
    start, trained = draw(seed, 2, entries)
    between = np.full(entries + 8, np.nan, dtype=np.float32)
    limits = np.float32(low), np.float32(high)
    found = compiled.collect_update(start, trained, *limits, between)
    magnitudes = np.abs(start - trained)
    inside = magnitudes[(magnitudes >= limits[0]) & (magnitudes <= limits[1])]
    below = magnitudes[magnitudes < limits[0]].astype(np.float64)
    assert (found[0], found[3]) == (len(below), len(inside))
    assert found[1:3] == pytest.approx((float(below.sum()), float(below @ below)), rel=1e-5)
    np.testing.assert_array_equal(between[: len(inside)], inside)


@claim
@given(seed=seeds, entries=lengths, threshold=st.sampled_from([-1.0, 0.0, 1.0, 3.0, 100.0]))
def test_what_is_kept_is_averaged(seed: int, entries: int, threshold: float) -> None:
    start, trained = whole_numbers(seed, 2, entries)
    sums = normal(seed + 1, 3, entries)
    kept = np.where(np.abs(start - trained) > threshold, start - trained, 0)
    unit = kept * np.float32(0.125)
    expected = sums + np.stack([kept * np.float32(0.25), unit, unit * unit])
    numbers = np.float32(0.25), np.float32(threshold), np.float32(0.125)
    compiled.average(start, trained, *numbers, *sums)
    np.testing.assert_allclose(sums, expected, rtol=1e-6, atol=1e-6)


@claim
@given(seed=seeds, entries=lengths)
def test_consensus_is_measured_and_amplified(seed: int, entries: int) -> None:
    start, change = normal(seed, 2, entries)
    members, sent = normal(seed + 1, 2, entries) > 0
    factor = np.float32(1.5)
    magnitudes = np.abs(change[members]).astype(np.float64)
    magnitudes[sent[members]] /= factor
    measured = compiled.magnitude_on(change, members, sent, factor)
    assert measured == pytest.approx(float(magnitudes.sum()), rel=1e-5)
    expected = start - np.where(members, change * factor, change)
    compiled.move(start, change, members, factor)
    np.testing.assert_allclose(change, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("unpack", [compiled.unpack, _unpack], ids=["compiled", "NumPy"])
@claim
@given(seed=seeds, entries=lengths, share=st.sampled_from([0.0, 0.1, 0.9, 1.0]))
def test_packed_values_are_unpacked(
    unpack: Callable[..., None], seed: int, entries: int, share: float
) -> None:
    start, values = normal(seed, 2, entries)
    kept = np.random.default_rng(seed).random(entries) < share
    bits = np.packbits(kept)
    padded = np.append(values[kept], np.zeros(8, dtype=np.float32))
    out = np.full(entries, np.nan, dtype=np.float32)
    unpack(bits, padded, np.float32(0.25), start, out)
    np.testing.assert_array_equal(out, start - np.where(kept, values * np.float32(0.25), 0))


OBSTACLES = ("no folder can be written to", "the disk is full", "none", "none")


def test_compiled_loops_give_the_same_bits_kept_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last time loads what the time before kept."""
    arrays = normal(0, 3, 70000)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    found = []
    for obstacle in OBSTACLES:
        with monkeypatch.context() as patch:
            if obstacle == "no folder can be written to":
                for locator in caching.CacheImpl._locator_classes:
                    patch.setattr(locator, "from_function", lambda *_: None)
            elif obstacle == "the disk is full":
                patch.setattr(caching.IndexDataCacheFile, "save", no_space_left)
            found.append(compiled_afresh().products(*arrays))
        assert bool(list(tmp_path.rglob("*.nbc"))) == (obstacle == "none")
    assert len(set(found)) == 1, found


def no_space_left(*_: object) -> None:
    raise OSError(28, "No space left on device")


def compiled_afresh() -> Any:
    """The module once more, of which nothing was compiled yet in this process."""
    spec = importlib.util.find_spec(compiled.__name__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
