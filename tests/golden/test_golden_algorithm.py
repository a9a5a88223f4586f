"""Runs of the authors' code, replayed round by round through `server_step`.

Each round starts from the golden global model of the round before, and the weighting state is
carried along, so that an error cannot hide behind an earlier one. Counters are left out: the
authors' code truncates them, FedPW rounds to nearest.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedpw_flwr.algorithm import (
    ClientResult,
    FedPWSettings,
    ServerStep,
    TensorKind,
    WeightingState,
    classify_tensors,
    server_step,
)

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
FILES = ("cnn_bn_5clients", "mlp_6clients")

pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the golden rounds are not beside the repository (shared/golden)"
)


class GoldenRun:
    """One file of golden rounds."""

    def __init__(self, name: str) -> None:
        with np.load(GOLDEN / f"{name}.npz") as archive:
            self.arrays = dict(archive)
        self.names = [str(name) for name in self.arrays["names"]]
        self.rounds, self.clients = self.arrays["losses"].shape
        self.settings = FedPWSettings(
            avg_drop_rate=float(self.arrays["avg_drop_rate"]),
            beta=float(self.arrays["beta"]),
            clip_weights=False,
        )

    def model(self, place: str) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(self.arrays[f"{place}/{name}"]) for name in self.names}

    def start(self, position: int) -> dict[str, torch.Tensor]:
        return self.model(f"round{position - 1}/global" if position else "init")

    def results(self, position: int) -> list[ClientResult]:
        return [
            ClientResult(
                client=client,
                tensors=self.model(f"round{position}/client{client}"),
                loss=float(self.arrays["losses"][position, client]),
            )
            for client in range(self.clients)
        ]

    def row(self, key: str, position: int) -> npt.NDArray[np.float64]:
        return np.asarray(self.arrays[key][position], dtype=np.float64)

    def replay(self, device: str) -> list[ServerStep]:
        steps: list[ServerStep] = []
        state = WeightingState()
        for position in range(self.rounds):
            steps.append(
                server_step(
                    self.start(position), self.results(position), state, self.settings, device
                )
            )
            state = steps[-1].state
        return steps


@pytest.fixture(scope="module", params=FILES)
def golden(request: pytest.FixtureRequest) -> GoldenRun:
    return GoldenRun(request.param)


@pytest.fixture(
    scope="module",
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(
                not torch.cuda.is_available(), reason="needs a CUDA device; this machine has none"
            ),
        ),
    ],
)
def steps(golden: GoldenRun, request: pytest.FixtureRequest) -> list[ServerStep]:
    return golden.replay(request.param)


def test_weights_and_their_terms_are_those_of_the_authors(
    golden: GoldenRun, steps: list[ServerStep]
) -> None:
    for position, step in enumerate(steps):
        for key, values in (
            ("weights", step.weights.weights),
            ("direction_term", step.weights.direction_term),
            ("loss_term", step.weights.loss_term),
        ):
            np.testing.assert_allclose(
                np.array(values),
                golden.row(key, position),
                rtol=0,
                atol=1e-6,
                err_msg=f"{key}, {position}",
            )


def test_drop_rates_are_those_of_the_authors(golden: GoldenRun, steps: list[ServerStep]) -> None:
    assert steps[0].drop_rates is None
    for position, step in enumerate(steps[1:], start=1):
        np.testing.assert_allclose(
            np.array(step.drop_rates), golden.row("drop_rates", position), rtol=0, atol=1e-6
        )


def test_global_models_are_those_of_the_authors(golden: GoldenRun, steps: list[ServerStep]) -> None:
    for position, step in enumerate(steps):
        assert list(step.model) == golden.names
        for name, expected in golden.model(f"round{position}/global").items():
            if expected.is_floating_point():
                off = float((step.model[name] - expected).abs().max())
                assert off <= 1e-5, f"{name} in round {position}"


def test_counters_are_rounded_where_the_authors_truncate(
    golden: GoldenRun, steps: list[ServerStep]
) -> None:
    for position, step in enumerate(steps):
        weights = golden.row("weights", position)
        for name, tensor in step.model.items():
            if not tensor.is_floating_point():
                trained = [
                    int(golden.arrays[f"round{position}/client{client}/{name}"])
                    for client in range(golden.clients)
                ]
                assert int(tensor) == round(float(np.dot(weights, trained)))


def test_tensors_are_told_apart_as_the_authors_do(golden: GoldenRun) -> None:
    kinds = classify_tensors(dict(golden.model("init")))
    trainable = [kind is TensorKind.TRAINABLE for kind in kinds.values()]
    assert trainable == golden.arrays["is_param"].tolist()


def test_the_golden_rounds_amplify_some_tensors(steps: list[ServerStep]) -> None:
    assert any(factor > 1 for step in steps for factor in step.amplification.values())
