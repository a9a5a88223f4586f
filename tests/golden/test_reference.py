"""The reference itself, against what lies beside the repository: runs of the authors' code.

The one check that a clone without ../shared skips.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from support.golden import AUTHORS, AUTHORS_RUNS, authors_run
from support.reference import Server, Signal, trainable_names

MEMORY = AUTHORS.parent / "weights_over_time.py"

pytestmark = pytest.mark.skipif(
    not (AUTHORS.is_dir() and MEMORY.is_file()),
    reason="the authors' rounds are not beside the repository (../shared/golden)",
)


@pytest.mark.parametrize("name", AUTHORS_RUNS)
def test_the_reference_gives_the_authors_rounds(name: str) -> None:
    run, trainable = authors_run(name)
    server = Server(run.settings)
    for number, golden in enumerate(run.rounds):
        assert trainable_names(golden.start, None) == trainable
        step, expected = server.step(golden.start, golden.replies), golden.expected
        for what in ("weights", "p", "q", "rates"):
            found, wanted = getattr(step, what), getattr(expected, what)
            assert (found is None) is (wanted is None)
            if wanted is not None:
                np.testing.assert_allclose(
                    found, wanted, rtol=0, atol=1e-6, err_msg=f"{what}, round {number}"
                )
        assert list(step.model) == list(expected.model)
        for key, array in expected.model.items():
            np.testing.assert_allclose(
                step.model[key], array, rtol=0, atol=1e-5, err_msg=f"{key}, round {number}"
            )


def test_the_references_memory_is_that_of_the_contracts_own() -> None:
    spec = importlib.util.spec_from_file_location("weights_over_time", MEMORY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs, ours, rng = module.Signal(), Signal(), np.random.default_rng(3)
    for _ in range(300):
        there = rng.choice(30, rng.integers(1, 31), replace=False).tolist()
        raw = rng.normal(1.0, 0.3, len(there))
        size = float(rng.choice([0.0, 1e-6, 1e-3, 0.5, 1.0, 3.0]))
        expected = theirs.step(there, raw / raw.sum(), size)
        np.testing.assert_allclose(ours.step(there, raw / raw.sum(), size), expected, atol=1e-10)
