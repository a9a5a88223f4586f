"""Golden rounds through `server_step`: what the reference gives, the package gives.

Every engine plays them; the one for CPUs leaves float64 to the reference engine. The state of the
package is carried along, its model is not: each round starts from the golden one, so that an error
cannot hide behind an earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.golden import RUNS, GoldenRound, GoldenRun, golden_run
from support.reference import Arrays, trainable_names

from fedpw_flwr.algorithm import (
    ClientResult,
    Consensus,
    FedPWSettings,
    SentAdjustment,
    ServerStep,
    TensorKind,
    WeightingState,
    classify_tensors,
    server_step,
)
from fedpw_flwr.algorithm.reference import Reference, StartEngine
from fedpw_flwr.engines.cpu import CpuEngine

NO_CUDA = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none"
)
DTYPES = ("float32", "float64")
ENGINES: dict[str, StartEngine] = {
    "tensor by tensor": Reference,
    "cpu": CpuEngine,
    "cuda": partial(Reference, device="cuda"),
}
ON_CLIENTS = ("clients", "equal weights")
NUMBERS = {"float32": 1e-6, "float64": 1e-10}
"""How far weights, rates, p and q may be off, and below entries of tensors."""
TENSORS = {"float32": 1e-5, "float64": 1e-9}


def tensors(model: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in model.items()}


def sent(golden: GoldenRound, number: int) -> SentAdjustment | None:
    """What the clients were asked for, as the package says it."""
    if golden.asked is None:
        return None
    agreed = golden.asked.consensus
    members = {name: torch.from_numpy(one.members) for name, one in agreed.items()}
    factors = {name: one.factor for name, one in agreed.items()}
    return SentAdjustment(
        golden.asked.rates, Consensus(number, members, factors) if agreed else None
    )


@cache
def replay(name: str, dtype: str, engine: str = "cpu") -> list[tuple[GoldenRound, ServerStep]]:
    run, state = golden_run(name, dtype), WeightingState()
    played = []
    for number, golden in enumerate(run.rounds):
        results = [
            ClientResult(client, tensors(reply.model), reply.loss, reply.examples)
            for client, reply in golden.replies.items()
        ]
        step = server_step(
            tensors(golden.start),
            results,
            state,
            FedPWSettings(**run.arguments()),
            engine=ENGINES[engine],
            sent=sent(golden, number),
        )
        state = step.state
        played.append((golden, step))
    return played


def assert_near(found: object, expected: object, tolerance: float, what: str) -> None:
    np.testing.assert_allclose(
        np.array(found), np.array(expected), rtol=0, atol=tolerance, err_msg=what
    )


@pytest.mark.parametrize("engine", ["tensor by tensor", "cpu", pytest.param("cuda", marks=NO_CUDA)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*RUNS, *ON_CLIENTS, "bounded"])
def test_weights_rates_factors_and_models_are_those_of_the_reference(
    name: str, dtype: str, engine: str
) -> None:
    for number, (golden, step) in enumerate(replay(name, dtype, engine)):
        expected, where = golden.expected, f"round {number}"
        assert list(step.clients) == expected.clients
        for what, found, wanted in (
            ("weights", step.weights.weights, expected.weights),
            ("p", step.weights.direction_term, expected.p),
            ("q", step.weights.loss_term, expected.q),
            ("losses", step.losses, expected.losses),
            ("relative losses", step.relative_losses, expected.relative_losses),
            ("drop rates", step.drop_rates, expected.rates),
        ):
            if wanted is None:
                assert found is None, f"{what}, {where}"
            else:
                assert_near(found, wanted, NUMBERS[dtype], f"{what}, {where}")
        assert list(step.model) == list(expected.model)
        for key, tensor in step.model.items():
            tolerance = TENSORS[dtype] if tensor.is_floating_point() else 0.0
            assert_near(tensor.numpy(), expected.model[key], tolerance, f"{key}, {where}")
            assert tensor.numpy().dtype == golden.start[key].dtype
        if golden.asked is None:
            assert step.amplification == pytest.approx(expected.factors, rel=TENSORS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ON_CLIENTS)
def test_clients_are_told_the_references_consensus_and_factors(name: str, dtype: str) -> None:
    played = replay(name, dtype)
    assert played[0][1].consensus is None
    for (_, step), (after, _) in pairwise(played[1:]):
        assert after.asked is not None
        assert step.consensus is not None
        assert set(step.consensus.factors) == set(after.asked.consensus)
        for key, agreed in after.asked.consensus.items():
            assert step.consensus.factors[key] == pytest.approx(agreed.factor, rel=TENSORS[dtype])
            assert step.consensus.members[key].tolist() == agreed.members.tolist(), key


@pytest.mark.parametrize("name", RUNS)
def test_tensors_are_told_apart_as_the_reference_does(name: str) -> None:
    start = golden_run(name).rounds[0].start
    kinds = classify_tensors(tensors(start))
    trainable = [key for key, kind in kinds.items() if kind is TensorKind.TRAINABLE]
    assert trainable == trainable_names(start, None)
    integers = [key for key, kind in kinds.items() if kind is TensorKind.INTEGER]
    assert integers == [key for key, array in start.items() if array.dtype.kind == "i"]


# --- What the golden rounds are for happens in them ---------------------------------------------


def expected(run: GoldenRun, what: str) -> list[np.ndarray]:
    found = [getattr(golden.expected, what) for golden in run.rounds]
    return [values for values in found if values is not None]


def entries_below_zero(run: GoldenRun, name: str) -> int:
    return sum(int((golden.expected.model[name] < 0).sum()) for golden in run.rounds)


def factors_of(run: GoldenRun, name: str) -> list[float]:
    each: list[Mapping[str, float]] = [golden.expected.factors for golden in run.rounds]
    return [factors[name] for factors in each if name in factors]


def test_golden_clients_come_late_stay_away_and_return() -> None:
    attendance = [set(golden.replies) for golden in golden_run("churn").rounds]
    assert attendance[0] & attendance[2] - attendance[1]
    assert attendance[2] - attendance[0]
    assert len(attendance[4]) == 1


def test_golden_directions_turn_weights_negative_which_only_the_paper_keeps() -> None:
    assert min(weights.min() for weights in expected(golden_run("paper"), "weights")) < 0
    clipped = expected(golden_run("churn"), "weights")
    assert clipped[0].min() == 0
    assert min(terms.min() for terms in expected(golden_run("churn"), "p")) < 0


@pytest.mark.parametrize("name", RUNS)
def test_golden_rates_reach_one_and_golden_updates_zero(name: str) -> None:
    run = golden_run(name)
    assert max(rates.max() for rates in expected(run, "rates")) == 1
    assert any(
        all(
            np.array_equal(reply.model[key], golden.start[key])
            for reply in golden.replies.values()
            for key in golden.start
        )
        for golden in run.rounds
    )


@pytest.mark.parametrize("name", ["paper", "churn"])
@pytest.mark.parametrize("term", ["direction", "loss"])
def test_golden_momentum_is_clamped(name: str, term: str) -> None:
    # A round at the largest momentum leaves 1e-12 of what was, and ln 1e-12 is -27.6.
    states = [getattr(step.state, term).log_kept for _, step in replay(name, "float64")]
    falls = -np.diff([0.0, *states])
    assert falls.max() > 27.6
    assert falls.min() < 1


def test_golden_amplification_stops_where_more_was_masked_than_agreed_on() -> None:
    for name in ("paper", "churn"):
        run = golden_run(name)
        assert min(factors_of(run, "opposed")) == 1 < max(factors_of(run, "fc.weight"))


def test_golden_tensors_without_a_negative_entry_keep_that_but_for_the_papers_formula() -> None:
    assert entries_below_zero(golden_run("paper"), "scale") > 0
    for name in ("churn", *ON_CLIENTS):
        assert entries_below_zero(golden_run(name), "scale") == 0
        assert max(factors_of(golden_run(name), "scale")) > 1.5
