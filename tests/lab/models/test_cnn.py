from __future__ import annotations

import pytest
import torch

from fedpw_flwr.lab.models.cnn import SmallCNN


def _size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_by_default_it_has_no_running_statistics_and_the_names_of_saved_models() -> None:
    model = SmallCNN(num_classes=10)
    assert _size(model) == 151_882
    assert not list(model.buffers())
    layers = ("features.0", "features.3", "classifier.0", "classifier.2")
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("normalisation", ["batch", "group"])
def test_each_convolution_is_normalised_when_asked_for(normalisation: str) -> None:
    model = SmallCNN(10, width=8, normalisation=normalisation)
    assert _size(model) - _size(SmallCNN(10, width=8)) == 2 * (8 + 16)


def test_width_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        SmallCNN(num_classes=10, width=0)
