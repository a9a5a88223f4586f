"""Claims about FedAvgM and FedAdam: Flower's step on what is trained, on nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from baselines_federation import (
    MODEL,
    TRAINED,
    client_of,
    drawn,
    flat,
    grid_of,
    local,
)
from flwr.app import ArrayRecord, Message
from flwr.serverapp import strategy as flower
from support.grid import ClientsGrid, train_round
from support.records import array_record, ndarrays, train_content
from torch.nn.functional import cross_entropy

from fedpw_flwr.baselines import FedAdam, FedAvgM
from fedpw_flwr.lab.models.resnet import ResNet10

FLOATS = {name: MODEL[name] for name in TRAINED}

PAIRS: dict[str, tuple[Callable[[], flower.FedAvg], Callable[[], flower.FedAvg]]] = {
    "fedavgm": (
        lambda: FedAvgM(server_momentum=0.9, server_learning_rate=0.5),
        lambda: flower.FedAvgM(server_momentum=0.9, server_learning_rate=0.5),
    ),
    "fedadam": (lambda: FedAdam(eta=0.05), lambda: flower.FedAdam(eta=0.05)),
}


@pytest.mark.parametrize(("ours", "flowers"), PAIRS.values(), ids=PAIRS)
def test_trained_arrays_move_as_flowers_own_moves_them(
    ours: Callable[[], flower.FedAvg], flowers: Callable[[], flower.FedAvg]
) -> None:
    mine, theirs = ours(), flowers()
    arrays, expected = array_record(MODEL), array_record(FLOATS)
    grid = ClientsGrid({100 + one: client_of(drawn, one) for one in range(4)})
    for server_round in range(1, 5):
        arrays, _ = train_round(mine, grid, arrays, server_round)
        expected, _ = train_round(theirs, grid, expected, server_round)
        np.testing.assert_allclose(
            flat(ndarrays(arrays)), flat(ndarrays(expected)), rtol=1e-4, atol=1e-6
        )


def test_two_steps_of_momentum_worked_out_by_hand() -> None:
    """Δ = 1, then 1: v = 1, then 0.5 + 1; w falls by 0.1·1 and 0.1·1.5."""
    same, strategy = local([1, 0, 0, 0]), FedAvgM(server_learning_rate=0.1, server_momentum=0.5)
    arrays, first = array_record(MODEL), []
    for server_round in (1, 2):
        arrays, _ = train_round(strategy, grid_of([same] * 2), arrays, server_round)
        first.append(float(flat(ndarrays(arrays))[0]))
    assert first == pytest.approx([1 - 0.1, 1 - 0.25])


def test_a_step_of_adam_worked_out_by_hand() -> None:
    """Round 1 of Δ = −1: m = −0.1, v = 0.01, η_t = 0.1 √(1 − 0.99²) / (1 − 0.9²) in Flower's
    counting, and w falls by η_t · 0.1 / (0.1 + τ)."""
    arrays, _ = train_round(FedAdam(), grid_of([local([1, 0, 0, 0])] * 2), array_record(MODEL))
    eta = 0.1 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    assert flat(ndarrays(arrays))[0] == pytest.approx(1 - eta * 0.1 / (0.1 + 1e-3), abs=1e-6)


@pytest.mark.parametrize(("ours", "flowers"), PAIRS.values(), ids=PAIRS)
def test_statistics_are_the_rounds_average(
    ours: Callable[[], flower.FedAvg], flowers: Callable[[], flower.FedAvg]
) -> None:
    strategy, arrays = ours(), array_record(MODEL)
    same = local([0.1] * 4, mean=(0.25, 0), var=(0.125, 0.25), batches=3)
    for server_round in (1, 2, 3, 4):
        arrays, _ = train_round(strategy, grid_of([same] * 3), arrays, server_round)
    model = ndarrays(arrays)
    np.testing.assert_allclose(model["norm.running_mean"], [0.5 - 4 * 0.25, 1.0], atol=1e-6)
    np.testing.assert_allclose(model["norm.running_var"], [1 - 4 * 0.125, 2 - 4 * 0.25], atol=1e-6)
    assert model["norm.num_batches_tracked"] == 10 + 4 * 3


def pictures(seed: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    prototypes = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (64,), generator=generator)
    noise = torch.randn(64, 3, 8, 8, generator=generator)
    return (prototypes[labels] + 0.5 * noise) * scale + scale - 1, labels


DOMAINS = [pictures(seed, scale) for seed, scale in enumerate((0.3, 1.0, 2.0, 4.0))]


def trains_resnet(message: Message) -> list[Message]:
    node = message.metadata.dst_node_id
    network = ResNet10(10, width=4)
    arrays = message.content["arrays"]
    network.load_state_dict({name: torch.tensor(one.numpy()) for name, one in arrays.items()})
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    images, labels = DOMAINS[node]
    for begin in range(0, 64, 16):
        optimizer.zero_grad()
        part = slice(begin, begin + 16)
        cross_entropy(network(images[part]), labels[part]).backward()
        optimizer.step()
    model = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    return [Message(train_content(model, num_examples=64, client_id=node), reply_to=message)]


def rounds_with_nan(strategy: flower.FedAvg, rounds: int = 6) -> int:
    """In how many rounds the global model of a real ResNet-10 answers NaN."""
    torch.manual_seed(1)
    network = ResNet10(10, width=4)
    arrays, broken = ArrayRecord(network.state_dict()), 0
    grid = ClientsGrid(dict.fromkeys(range(len(DOMAINS)), trains_resnet))
    for server_round in range(1, rounds + 1):
        arrays, _ = train_round(strategy, grid, arrays, server_round)
        network.load_state_dict({name: torch.tensor(one.numpy()) for name, one in arrays.items()})
        network.eval()
        with torch.no_grad():
            broken += any(bool(network(images).isnan().any()) for images, _ in DOMAINS)
    return broken


@pytest.mark.long
def test_flowers_own_momentum_breaks_batchnorm_and_ours_does_not() -> None:
    """Why there is one here: when the first line fails, Flower's can do it."""
    assert rounds_with_nan(flower.FedAvgM(server_momentum=0.9)) > 0
    assert rounds_with_nan(FedAvgM(server_momentum=0.9)) == 0


@pytest.mark.parametrize(
    ("build", "wrong"),
    [
        (FedAvgM, {"server_learning_rate": 0.0}),
        (FedAvgM, {"server_momentum": 1.0}),
        (FedAvgM, {"server_momentum": -0.1}),
        (FedAdam, {"eta": -1.0}),
        (FedAdam, {"beta_1": 1.0}),
        (FedAdam, {"beta_2": 1.2}),
        (FedAdam, {"tau": 0.0}),
    ],
)
def test_settings_out_of_range_are_refused(
    build: Callable[..., object], wrong: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(**wrong)
