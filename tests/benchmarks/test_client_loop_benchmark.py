"""The plain loop does the work that the package does, and the tables say what was measured."""

from __future__ import annotations

import shlex

import client_loop
import plain_loop
import pytest
import torch
from torch.nn.functional import cross_entropy
from torchvision import transforms

from fedpw_flwr.lab.config.configuration import compose_configuration
from fedpw_flwr.lab.experiment import Experiment, build_experiment
from fedpw_flwr.lab.models.resnet import ResNet10

TINY = shlex.join((*client_loop.TINY, "runtime.device=cpu"))


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return build_experiment(compose_configuration("config", TINY))


def test_the_plain_network_is_the_same_function_with_the_same_gradients() -> None:
    torch.manual_seed(0)
    ours = ResNet10(10, width=4)
    plain = plain_loop.PlainResNet10(10, width=4)
    plain.load_state_dict(ours.state_dict())
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6)
    for model in (ours, plain):
        cross_entropy(model(images), labels).backward()
    for (name, weight), twin in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert weight.grad is not None
        assert twin.grad is not None
        assert torch.allclose(weight.grad, twin.grad, atol=1e-5), name
    for ours_state, plain_state in zip(
        ours.state_dict().values(), plain.state_dict().values(), strict=True
    ):
        assert torch.allclose(ours_state, plain_state, atol=1e-5)


def test_plain_rounds_train_every_client_and_test_every_domain(experiment: Experiment) -> None:
    first, second = plain_loop.plain_rounds(experiment, 2)
    assert (first.round, second.round) == (1, 2)
    assert set(first.accuracy) == set(experiment.data.names)
    assert all(0 <= value <= 1 for value in second.accuracy.values())
    assert first.seconds > 0


def test_plain_pictures_are_normalised_as_in_the_package(experiment: Experiment) -> None:
    data = experiment.data
    test = data.domains[0].test
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (data.mean, data.std))
    transform = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    image, label = plain_loop.Pictures(test, transform)[3]
    assert torch.allclose(image, (test.features[3] / 255 - mean) / std, atol=1e-5)
    assert label == int(test.labels[3])


def test_a_run_s_start_up_is_what_belongs_to_no_round_but_the_first() -> None:
    lines = [{"seconds": seconds, "accuracy": {"a": 0.5, "b": 1.0}} for seconds in (9.0, 2.0, 4.0)]
    run = client_loop._as_run(lines, wall=20.0)
    assert run.start_up == pytest.approx(14.0)
    assert run.seconds_a_round == pytest.approx(3.0)
    assert run.hours(11) == pytest.approx((14 + 10 * 3) / 3600)


def test_accuracy_figures_are_means_over_the_last_three_rounds() -> None:
    rounds = ({"a": 0.0, "b": 0.0}, *({"a": x, "b": 0.9} for x in (0.5, 0.6, 0.7)))
    average, deviation, worst = client_loop.figures_of(client_loop.Run((1.0,) * 4, 0.0, rounds))
    assert average == pytest.approx(75.0)
    assert worst == pytest.approx(60.0)
    assert deviation == pytest.approx(30 / 2**0.5)


def test_without_a_gpu_every_row_says_that_it_was_not_measured() -> None:
    table = client_loop.gpu_table(None, 5, None)
    assert len(table.rows) == 1 + 2 * len(client_loop.GPU_WORKERS)
    assert all(row[2] == "not measured (no GPU)" for row in table.rows)


@pytest.mark.long
def test_the_gpu_table_is_measured_on_a_device_that_is_there() -> None:
    table = client_loop.gpu_table(None, 2, "cpu", tiny=True)
    assert [row[0] for row in table.rows] == list(client_loop.KINDS)
    assert all(float(row[2]) > 0 for row in table.rows)


@pytest.mark.long
def test_accuracies_of_whole_runs_stand_beside_their_spread() -> None:
    table = client_loop.accuracy_table(None, [0, 1], 3, tiny=True)
    assert len(table.rows) == 2 * 3 + 3 * 2
    assert [row[1] for row in table.rows[-2:]] == ["mean", "spread over seeds"]
    assert all(0 <= float(row[2]) <= 100 for row in table.rows)
