"""Flower's legacy server goes on from a checkpoint, and ends with the bits it would have had."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from flwr.common import NDArrays, Scalar
from flwr.server import History
from flwr.server.strategy import FedAdam, FedAvgM, Strategy
from legacy_federation import INITIAL, NAMES, manager_of, plain_clients

from fedpw_flwr.checkpoint import CheckpointError
from fedpw_flwr.legacy import CheckpointedServer, FedPW

NODES = [3, 4, 5, 6]
ROUNDS = 5
Evaluated = tuple[float, dict[str, Scalar]]


class Killed(Exception):
    """Stands for a process that is killed: nothing after it is done."""


def evaluation(killed_in: int | None) -> Callable[[int, NDArrays, dict[str, Scalar]], Evaluated]:
    def evaluate(server_round: int, arrays: NDArrays, config: dict[str, Scalar]) -> Evaluated:
        if server_round == killed_in:
            raise Killed
        return float(sum(array.sum() for array in arrays)), {"raw": b"\x01", "round": server_round}

    return evaluate


BUILDS: dict[str, Callable[..., Strategy]] = {
    "fedpw": lambda **options: FedPW(
        array_names=NAMES, initial_parameters=INITIAL, device="cpu", **options
    ),
    "fedadam": lambda **options: FedAdam(initial_parameters=INITIAL, **options),
    "fedavgm": lambda **options: FedAvgM(
        initial_parameters=INITIAL, server_momentum=0.9, server_learning_rate=0.5, **options
    ),
}


def run(
    build: Callable[..., Strategy],
    folder: Path,
    killed_in: int | None = None,
    resume: bool = False,
    rounds: int = ROUNDS,
) -> tuple[History, list[bytes]]:
    server = CheckpointedServer(
        client_manager=manager_of(plain_clients(NODES)),
        strategy=build(evaluate_fn=evaluation(killed_in)),
        checkpoint_dir=folder,
        resume=resume,
    )
    history, _ = server.fit(rounds, timeout=None)
    return history, server.parameters.tensors


def test_a_killed_server_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    expected, model = run(BUILDS["fedpw"], tmp_path / "whole")
    for killed_in in (1, 3, ROUNDS):
        folder = tmp_path / f"{killed_in}"
        with pytest.raises(Killed):
            run(BUILDS["fedpw"], folder, killed_in)
        history, tensors = run(BUILDS["fedpw"], folder, resume=True)
        assert tensors == model
        assert vars(history) == vars(expected)


def array_of(data: bytes) -> np.ndarray:
    return np.load(BytesIO(data), allow_pickle=False)


@pytest.mark.parametrize("name", ["fedadam", "fedavgm"])
def test_flowers_server_optimizers_keep_their_moments(name: str, tmp_path: Path) -> None:
    """They add up replies as they arrive, so that no two runs of theirs have the same bits."""
    _, model = run(BUILDS[name], tmp_path / "whole")
    with pytest.raises(Killed):
        run(BUILDS[name], tmp_path / "killed", killed_in=3)
    history, tensors = run(BUILDS[name], tmp_path / "killed", resume=True)
    assert [number for number, _ in history.losses_centralized] == list(range(ROUNDS + 1))
    for found, expected in zip(tensors, model, strict=True):
        np.testing.assert_allclose(array_of(found), array_of(expected), rtol=1e-4, atol=1e-5)


def test_a_folder_in_use_and_another_method_are_refused(tmp_path: Path) -> None:
    run(BUILDS["fedpw"], tmp_path, rounds=1)
    with pytest.raises(CheckpointError, match=r"up to round 1"):
        run(BUILDS["fedpw"], tmp_path)
    with pytest.raises(CheckpointError, match=r"strategy: 'FedPW' in the checkpoint, 'FedAdam'"):
        run(BUILDS["fedadam"], tmp_path, resume=True)
