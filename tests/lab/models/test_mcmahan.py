from __future__ import annotations

import pytest
import torch
from torch import nn

from fedpw_flwr.lab.models.mcmahan import MLP, McMahanCNN


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_networks_for_mnist_have_the_published_numbers_of_parameters() -> None:
    assert _size(McMahanCNN(num_classes=10, in_channels=1, image_size=28)) == 1_663_370
    assert _size(MLP(num_classes=10, in_channels=1, image_size=28)) == 199_210


def test_parameters_for_colour_images_are_those_counted_by_hand() -> None:
    convolutions = 32 * (3 * 25 + 1) + 64 * (32 * 25 + 1)
    dense = 512 * (64 * 8 * 8 + 1) + 100 * (512 + 1)
    assert _size(McMahanCNN(num_classes=100, in_channels=3, image_size=32)) == convolutions + dense
    layers = 50 * (3 * 32 * 32 + 1) + 50 * (50 + 1) + 100 * (50 + 1)
    assert _size(MLP(100, in_channels=3, image_size=32, width=50)) == layers


@pytest.mark.parametrize("network", [McMahanCNN, MLP])
def test_images_of_the_size_built_for_become_logits_and_others_are_refused(
    network: type[McMahanCNN] | type[MLP],
) -> None:
    for size in (4, 15, 16, 28, 33):
        images = torch.zeros(2, 1, size, size)
        assert network(7, in_channels=1, image_size=size)(images).shape == (2, 7)
    with pytest.raises(ValueError, match=r"\(3, 28, 28\), got \(3, 32, 32\): set model.image_size"):
        network(10)(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("normalisation", ["batch", "group"])
def test_normalisation_follows_each_convolution(normalisation: str) -> None:
    model = McMahanCNN(10, image_size=16, normalisation=normalisation)
    assert _size(model) - _size(McMahanCNN(10, image_size=16)) == 2 * (32 + 64)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="image_size must be at least 4 pixels, got 3"):
        McMahanCNN(10, image_size=3)
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        MLP(10, image_size=0)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        MLP(10, width=0)
