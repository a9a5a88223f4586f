"""Compiled loops do what the uncompiled ones do, and both do what a plain formula says."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedpw_flwr.engines.kernels import Kernels, kernels, uncompiled, why_not_compiled

Float32s = NDArray[np.float32]
LENGTHS = [1, 7, 8, 9, 1000, 2047, 2048, 2049, 4096, 32767, 32769, 70001]
LARGE = 1 << 30
BOTH = [pytest.param(uncompiled, id="uncompiled"), pytest.param(kernels(LARGE), id="installed")]
claim = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
lengths = st.sampled_from(LENGTHS)


def normal(seed: int, *shape: int) -> Float32s:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def whole_numbers(seed: int, *shape: int) -> Float32s:
    """Few values, so that many entries are equal and differences are exact."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


@pytest.mark.parametrize("loops", BOTH)
@claim
@given(seed=seeds, entries=lengths)
def test_updates_are_added_up(loops: Kernels, seed: int, entries: int) -> None:
    start, trained, total = normal(seed, 3, entries)
    expected = total + (start - trained)
    loops.add_update(start, trained, total)
    np.testing.assert_array_equal(total, expected)


@pytest.mark.parametrize("loops", BOTH)
@claim
@given(seed=seeds, entries=lengths)
def test_products_are_those_of_updates(loops: Kernels, seed: int, entries: int) -> None:
    start, trained, total = normal(seed, 3, entries)
    update = (start - trained).astype(np.float64)
    product, square = loops.products(start, trained, total)
    scale = float(np.linalg.norm(update) * np.linalg.norm(total))
    assert product == pytest.approx(float(update @ total), abs=1e-5 * scale)
    assert square == pytest.approx(float(update @ update), rel=1e-5)


@pytest.mark.parametrize("loops", BOTH)
@pytest.mark.parametrize("draw", [normal, whole_numbers])
@pytest.mark.parametrize(
    ("low", "high"), [(0, np.inf), (1, 2), (2, 2), (0, 0), (100, 200), (0.001, np.inf)]
)
@settings(max_examples=8, deadline=None)
@given(seed=seeds, entries=lengths)
def test_what_is_below_a_bracket_is_summed_up_and_what_is_inside_collected(
    loops: Kernels,
    draw: Callable[..., Float32s],
    low: float,
    high: float,
    seed: int,
    entries: int,
) -> None:
    start, trained = draw(seed, 2, entries)
    between = np.full(entries + 8, np.nan, dtype=np.float32)
    limits = np.float32(low), np.float32(high)
    found = loops.collect_update(start, trained, *limits, between)
    magnitudes = np.abs(start - trained)
    inside = magnitudes[(magnitudes >= limits[0]) & (magnitudes <= limits[1])]
    below = magnitudes[magnitudes < limits[0]].astype(np.float64)
    assert found[0] == len(below)
    assert found[1] == pytest.approx(float(below.sum()), rel=1e-5)
    assert found[2] == pytest.approx(float(below @ below), rel=1e-5)
    assert found[3] == len(inside)
    np.testing.assert_array_equal(between[: len(inside)], inside)
    between[:] = np.nan
    assert loops.collect_values(magnitudes, *limits, between) == pytest.approx(found, rel=1e-6)
    np.testing.assert_array_equal(between[: len(inside)], inside)


@pytest.mark.parametrize("loops", BOTH)
@claim
@given(seed=seeds, entries=lengths, data=st.data())
def test_the_smallest_are_summed_up(
    loops: Kernels, seed: int, entries: int, data: st.DataObject
) -> None:
    parted = np.sort(np.abs(whole_numbers(seed, entries)))
    taken = data.draw(st.integers(1, entries), "taken")
    total, squares, ties, further = loops.sum_of_smallest(parted, taken)
    chosen = parted[:taken].astype(np.float64)
    assert (total, squares) == (chosen.sum(), chosen @ chosen)
    assert ties == np.count_nonzero(parted[:taken] == parted[taken - 1])
    assert further == np.count_nonzero(parted[taken:] == parted[taken - 1])


@pytest.mark.parametrize("loops", BOTH)
@claim
@given(seed=seeds, entries=lengths, threshold=st.sampled_from([-1.0, 0.0, 1.0, 3.0, 100.0]))
def test_what_is_kept_is_averaged(
    loops: Kernels, seed: int, entries: int, threshold: float
) -> None:
    start, trained = whole_numbers(seed, 2, entries)
    sums = normal(seed + 1, 3, entries)
    kept = np.where(np.abs(start - trained) > threshold, start - trained, 0)
    unit = kept * np.float32(0.125)
    expected = sums + np.stack([kept * np.float32(0.25), unit, unit * unit])
    numbers = np.float32(0.25), np.float32(threshold), np.float32(0.125)
    loops.average(start, trained, *numbers, *sums)
    np.testing.assert_allclose(sums, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loops", BOTH)
@claim
@given(seed=seeds, entries=lengths, data=st.data())
def test_what_is_above_is_chosen_and_the_first_of_its_equals(
    loops: Kernels, seed: int, entries: int, data: st.DataObject
) -> None:
    values = np.abs(whole_numbers(seed, entries))
    size = data.draw(st.integers(1, entries), "size")
    members = np.ones(entries, dtype=np.bool_)
    # The largest first, and of equal ones those of lower index.
    order = np.lexsort((np.arange(entries), -values))
    threshold = values[order[size - 1]]
    room = size - int(np.count_nonzero(values > threshold))
    loops.choose_above(values, threshold, room, members)
    np.testing.assert_array_equal(np.flatnonzero(members), np.sort(order[:size]))


@pytest.mark.parametrize("loops", BOTH)
@claim
@given(seed=seeds, entries=lengths)
def test_consensus_is_measured_and_amplified(loops: Kernels, seed: int, entries: int) -> None:
    start, change = normal(seed, 2, entries)
    members, sent = normal(seed + 1, 2, entries) > 0
    factor = np.float32(1.5)
    magnitudes = np.abs(change[members]).astype(np.float64)
    magnitudes[sent[members]] /= factor
    measured = loops.magnitude_on(change, members, sent, factor)
    assert measured == pytest.approx(float(magnitudes.sum()), rel=1e-5)
    expected = start - np.where(members, change * factor, change)
    loops.move(start, change, members, factor)
    np.testing.assert_allclose(change, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loops", BOTH)
@claim
@given(seed=seeds, entries=lengths, share=st.sampled_from([0.0, 0.1, 0.9, 1.0]))
def test_packed_values_are_unpacked(loops: Kernels, seed: int, entries: int, share: float) -> None:
    start, values = normal(seed, 2, entries)
    kept = np.random.default_rng(seed).random(entries) < share
    bits = np.packbits(kept)
    padded = np.append(values[kept], np.zeros(8, dtype=np.float32))
    out = np.full(entries, np.nan, dtype=np.float32)
    loops.unpack(bits, padded, np.float32(0.25), start, out)
    np.testing.assert_array_equal(out, start - np.where(kept, values * np.float32(0.25), 0))


def test_loops_are_compiled_where_it_pays_and_numba_is() -> None:
    assert kernels(1_000_000) is uncompiled
    assert bool(why_not_compiled()) == (kernels(LARGE) is uncompiled)


@pytest.mark.parametrize(
    "obstacle",
    [
        # A user whose home and site-packages cannot be written to.
        "for locator in c.CacheImpl._locator_classes:\n"
        "    locator.from_function = classmethod(lambda *_: None)\n",
        # A disk that is full.
        "def full(*_):\n"
        "    raise OSError(28, 'No space left on device')\n"
        "c.IndexDataCacheFile.save = full\n",
    ],
    ids=["no folder", "full disk"],
)
def test_compiled_loops_work_where_they_cannot_be_kept(tmp_path: Path, obstacle: str) -> None:
    program = (
        f"import numba.core.caching as c\n{obstacle}"
        "import numpy as np\n"
        "from fedpw_flwr.engines.kernels import kernels, uncompiled\n"
        "one = np.ones(3, dtype=np.float32)\n"
        "loops = kernels(2**30)\n"
        "loops.add_update(one, 3 * one, one)\n"
        "limits = np.float32(0), np.float32(9)\n"
        "found = loops.collect_values(np.ones(3, dtype='f4'), *limits, np.ones(11, dtype='f4'))\n"
        "print(loops is uncompiled, one.tolist(), found)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment["NUMBA_CACHE_DIR"] = str(tmp_path / "none yet")
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False [-1.0, -1.0, -1.0] (0, 0.0, 0.0, 3)\n"
