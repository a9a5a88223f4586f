from __future__ import annotations

import pytest
import torch

from fedpw_flwr.lab.models.cnn import SmallCNN


def test_it_has_no_running_statistics() -> None:
    assert not list(SmallCNN(num_classes=10).buffers())


def test_size_of_the_network_does_not_depend_on_the_picture() -> None:
    model = SmallCNN(num_classes=10, in_channels=3, width=32)
    assert sum(parameter.numel() for parameter in model.parameters()) == 151_882


def test_without_normalisation_weights_have_the_names_of_saved_models() -> None:
    names = [
        f"{layer}.{kind}" for layer in ("features.0", "features.3") for kind in ("weight", "bias")
    ]
    names += [f"classifier.{place}.{kind}" for place in (0, 2) for kind in ("weight", "bias")]
    assert list(SmallCNN(num_classes=10).state_dict()) == names


@pytest.mark.parametrize("normalisation", ["batch", "group"])
def test_each_convolution_is_normalised_when_asked_for(normalisation: str) -> None:
    plain = SmallCNN(10, width=8)
    model = SmallCNN(10, width=8, normalisation=normalisation)  # type: ignore[arg-type]
    extra = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == 2 * (8 + 16)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_width_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        SmallCNN(num_classes=10, width=0)
