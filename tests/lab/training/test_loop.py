from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from fedpw_flwr.lab.data.examples import DomainCollection, ImageSet
from fedpw_flwr.lab.models.cnn import SmallCNN
from fedpw_flwr.lab.models.normalisation import Normalisation as Normalised
from fedpw_flwr.lab.models.resnet import ResNet10
from fedpw_flwr.lab.training.batches import Normalisation, training_batches
from fedpw_flwr.lab.training.evaluation import evaluate
from fedpw_flwr.lab.training.loop import client_generator, train
from fedpw_flwr.lab.training.settings import ClientSettings

SETTINGS = ClientSettings(epochs=1, batch_size=64, learning_rate=0.01, crop_padding=1)


def _train(
    model: torch.nn.Module,
    data: DomainCollection,
    settings: ClientSettings = SETTINGS,
    images: ImageSet | None = None,
    proximal_mu: float = 0.0,
) -> float:
    return train(
        model,
        data.domains[0].train if images is None else images,
        settings,
        Normalisation(data.mean, data.std, "cpu"),
        generator=client_generator(0, 1, 0),
        proximal_mu=proximal_mu,
    )


def _small(seed: int = 0) -> SmallCNN:
    torch.manual_seed(seed)
    return SmallCNN(10, width=4)


def _resnet(width: int, normalisation: Normalised = "batch") -> ResNet10:
    torch.manual_seed(0)
    return ResNet10(10, width=width, normalisation=normalisation)


def _weights(model: torch.nn.Module) -> torch.Tensor:
    return parameters_to_vector(model.parameters()).detach().clone()


def _plainly(
    model: torch.nn.Module, data: DomainCollection, settings: ClientSettings, mu: float
) -> float:
    """Train on loss + mu/2 ||w - w_start||^2 as it is written; return the mean plain loss."""
    start = _weights(model)
    optimizer = torch.optim.SGD(
        model.parameters(), settings.learning_rate, settings.momentum, 0, settings.weight_decay
    )
    losses = []
    for images, labels in training_batches(
        data.domains[0].train,
        Normalisation(data.mean, data.std, "cpu"),
        batch_size=settings.batch_size,
        crop_padding=settings.crop_padding,
        epochs=settings.epochs,
        generator=client_generator(0, 1, 0),
    ):
        loss = cross_entropy(model(images), labels)
        moved = parameters_to_vector(model.parameters()) - start
        optimizer.zero_grad()
        (loss + mu / 2 * moved.square().sum()).backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(losses) == 14
    return sum(losses) / len(losses)


@pytest.mark.parametrize("mu", [0.0, 2.0])
def test_training_is_sgd_on_the_objective_and_its_loss_the_mean_over_all_batches(
    scans: DomainCollection, mu: float
) -> None:
    settings = replace(SETTINGS, epochs=2, weight_decay=1e-3, crop_padding=2)
    ours, theirs = _small(), _small()
    loss = _train(ours, scans, settings, proximal_mu=mu)
    assert loss == pytest.approx(_plainly(theirs, scans, settings, mu), rel=1e-5)
    assert torch.allclose(_weights(ours), _weights(theirs), atol=1e-5)


def test_proximal_term_leaves_frozen_weights_and_running_statistics_alone(
    scans: DomainCollection,
) -> None:
    model = _resnet(2)
    model.stem.weight.requires_grad_(False)
    frozen = model.stem.weight.clone()
    _train(model, scans, proximal_mu=1.0)
    assert torch.equal(model.stem.weight, frozen)
    assert int(model.bn.num_batches_tracked) == 7


@pytest.mark.parametrize("mu", [-0.1, float("nan"), float("inf")])
def test_impossible_proximal_mu_is_refused(scans: DomainCollection, mu: float) -> None:
    with pytest.raises(ValueError, match="proximal_mu must be at least 0 and finite"):
        _train(_small(), scans, proximal_mu=mu)


def test_mirrored_images_reach_the_network(scans: DomainCollection) -> None:
    losses = [
        _train(_small(), scans, replace(SETTINGS, horizontal_flip=flip))
        for flip in (False, True, True)
    ]
    assert losses[0] != losses[1] == losses[2]


def test_round_is_the_same_whatever_ran_before_it(scans: DomainCollection) -> None:
    results = []
    for noise in (1, 2):
        model = _resnet(4)
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        loss = _train(model, scans)
        assert torch.equal(before, torch.get_rng_state())
        results.append((loss, model.state_dict()))
    (first_loss, first), (second_loss, second) = results
    assert first_loss == second_loss
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_clients_rounds_and_seeds_have_randomness_of_their_own() -> None:
    triples = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 1, 0), (0, 1, 3)]
    draws = {int(torch.randint(2**62, (), generator=client_generator(*three))) for three in triples}
    assert len(draws) == len(triples)


@pytest.mark.parametrize("count", [1, 2, 17, 33])
def test_any_number_of_images_trains_a_network_with_batchnorm(
    scans: DomainCollection, count: int
) -> None:
    images = scans.domains[0].train.select(torch.arange(count))
    assert 0 < _train(_resnet(2), scans, replace(SETTINGS, batch_size=16), images=images) < 10


def test_client_without_images_is_told_so(scans: DomainCollection) -> None:
    nothing = scans.domains[0].train.select(torch.arange(0))
    with pytest.raises(ValueError, match="0 examples"):
        _train(_small(), scans, images=nothing)


def test_diverged_training_reports_a_loss_that_is_not_finite(scans: DomainCollection) -> None:
    loss = _train(_small(), scans, ClientSettings(epochs=2, learning_rate=1e30))
    assert not math.isfinite(loss)


LONGER = replace(SETTINGS, batch_size=16, learning_rate=0.05)


def _accuracy(model: torch.nn.Module, data: DomainCollection) -> float:
    return evaluate(model, data.domains[0].test, Normalisation(data.mean, data.std, "cpu")).accuracy


def test_a_few_epochs_learn_plain_digits_in_float32_and_bfloat16(scans: DomainCollection) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        model = _resnet(8)
        losses.append(_train(model, scans, replace(LONGER, epochs=8, precision=precision)))
        assert _accuracy(model, scans) > 0.85
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


@pytest.mark.parametrize(("normalisation", "epochs"), [("group", 3), ("none", 7)])
def test_a_network_without_running_statistics_learns_digits(
    scans: DomainCollection, normalisation: Normalised, epochs: int
) -> None:
    model = _resnet(8, normalisation)
    _train(model, scans, replace(LONGER, epochs=epochs))
    assert _accuracy(model, scans) > 0.35


def test_bfloat16_computes_products_in_bfloat16_and_leaves_the_weights_float32(
    scans: DomainCollection,
) -> None:
    model = _resnet(2)
    seen = []
    model.stem.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    _train(model, scans, replace(SETTINGS, precision="bfloat16"))
    assert set(seen) == {torch.bfloat16}
    floats = [tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()]
    assert set(floats) == {torch.float32}


def test_a_model_in_channels_last_trains_as_one_in_plain_order(scans: DomainCollection) -> None:
    last = _resnet(4).to(memory_format=torch.channels_last)
    losses = [_train(model, scans) for model in (_resnet(4), last)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.long
def test_compiled_training_agrees_with_plain_training(scans: DomainCollection) -> None:
    plain, compiled = _small(), _small()
    loss = _train(plain, scans)
    calls = torch._dynamo.utils.counters["stats"]["calls_captured"]
    compiled_loss = _train(compiled, scans, replace(SETTINGS, compile=True))
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > calls
    assert compiled_loss == pytest.approx(loss, rel=1e-5)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert torch.allclose(_weights(compiled), _weights(plain), atol=1e-5)
