from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedpw_flwr.lab.data.examples import DomainCollection, Examples, ImageSet
from fedpw_flwr.lab.models.resnet import ResNet10
from fedpw_flwr.lab.training.batches import Normalisation
from fedpw_flwr.lab.training.evaluation import Evaluation, Scores, evaluate, scores


class AlwaysThree(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros((len(x), 10), device=x.device)
        logits[:, 3] = 50.0
        return logits


def _scale(data: DomainCollection) -> Normalisation:
    return Normalisation(data.mean, data.std, "cpu")


AS_IT_IS = Normalisation((), (), "cpu")


def _evaluate(model: nn.Module, data: DomainCollection, batch_size: int = 256) -> Evaluation:
    return scores(model, data.domains[0].test, _scale(data), batch_size=batch_size).evaluation()


def test_accuracy_and_loss_are_those_of_the_answers(scans: DomainCollection) -> None:
    threes = float((scans.domains[0].test.labels == 3).float().mean())
    result = _evaluate(AlwaysThree(), scans)
    assert result.num_examples == 200
    assert result.accuracy == pytest.approx(threes)
    assert result.loss == pytest.approx(50 * (1 - threes), rel=1e-6)


def test_pixels_are_normalised_as_in_training(scans: DomainCollection) -> None:
    torch.manual_seed(0)
    model = ResNet10(10, width=2).eval()
    test = scans.domains[0].test
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (scans.mean, scans.std))
    with torch.no_grad():
        logits = model((test.features / 255 - mean) / std)
    result = _evaluate(model, scans)
    assert result.loss == pytest.approx(float(cross_entropy(logits, test.labels)), rel=1e-4)


def test_neither_batch_size_nor_running_statistics_change(scans: DomainCollection) -> None:
    torch.manual_seed(0)
    model = ResNet10(10, width=2).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = _evaluate(model, scans, 200)
    for batch_size in (1, 7, 199, 256):
        parts = _evaluate(model, scans, batch_size)
        assert parts.accuracy == whole.accuracy
        assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_evaluation_leaves_a_model_that_can_be_loaded_into_and_trained() -> None:
    model = ResNet10(num_classes=10, in_channels=3, width=2)
    images = ImageSet(torch.zeros(3, 3, 16, 16, dtype=torch.uint8), torch.zeros(3).long())
    # As on a GPU, evaluation is what moves the model.
    with pytest.raises((RuntimeError, NotImplementedError)):
        evaluate(model, images, Normalisation([0.5] * 3, [0.5] * 3, "meta"))
    moved = [*model.parameters(), *model.buffers()]
    assert all(tensor.device.type == "meta" for tensor in moved)
    assert not any(tensor.is_inference() for tensor in moved)


def test_accuracy_of_parts_is_that_of_each_part_alone(scans: DomainCollection) -> None:
    torch.manual_seed(0)
    model, test = ResNet10(10, width=2), scans.domains[0].test
    sizes, scale = [1, 70, 29, 100], _scale(scans)
    # A batch ends in the middle of a part.
    found = scores(model, test, scale, batch_size=64).accuracies(sizes)
    parts = torch.arange(200).split(sizes)
    expected = [evaluate(model, test.select(part), scale).accuracy for part in parts]
    assert found == expected


def test_batches_that_are_scored_apart_make_the_same_whole(scans: DomainCollection) -> None:
    torch.manual_seed(0)
    model, test = ResNet10(10, width=2), scans.domains[0].test
    whole, *parts = (
        scores(model, test, _scale(scans), batch_size=64, batches=part)
        for part in (slice(None), slice(0, 1), slice(1, 3), slice(3, 4))
    )
    assert Scores.joined(parts).evaluation() == whole.evaluation()


def test_auc_of_two_classes_is_that_of_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 2, generator=generator).round(decimals=1)
    labels = (torch.rand(60, generator=generator) < 0.3).long()
    found = evaluate(nn.Identity(), Examples(features, labels), AS_IT_IS)
    margins = features[:, 1] - features[:, 0]
    positive, negative = margins[labels == 1][:, None], margins[labels == 0]
    pairs = (positive > negative).double() + (positive == negative).double() / 2
    assert found.auc == pytest.approx(float(pairs.mean()))

    alone = Examples(features, torch.ones(60, dtype=torch.int64))
    auc = evaluate(nn.Identity(), alone, AS_IT_IS).auc
    assert auc is not None
    assert math.isnan(auc)
