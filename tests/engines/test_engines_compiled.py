"""Compiled loops: those that no whole step tries alone, and a laptop whose disk is full."""

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

LENGTHS = [1, 7, 8, 9, 1000, 2047, 2048, 2049, 4096, 32767, 32769, 70001]


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("unpack", [compiled.unpack, _unpack], ids=["compiled", "NumPy"])
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    entries=st.sampled_from(LENGTHS),
    share=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
)
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
