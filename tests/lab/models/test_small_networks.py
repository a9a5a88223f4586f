"""The small networks, torchvision's own, and what normalises them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models import resnet18

from fedpw_flwr.lab.models.cnn import SmallCNN
from fedpw_flwr.lab.models.mcmahan import MLP, McMahanCNN
from fedpw_flwr.lab.models.normalisation import groups_of
from fedpw_flwr.lab.models.torchvision_resnet import torchvision_resnet18


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_cnn_has_no_running_statistics_and_the_names_of_saved_models() -> None:
    model = SmallCNN(num_classes=10)
    assert _size(model) == 151_882
    assert not list(model.buffers())
    layers = ("features.0", "features.3", "classifier.0", "classifier.2")
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("normalisation", ["batch", "group"])
def test_each_convolution_is_normalised_when_asked_for(normalisation: str) -> None:
    for network, channels in (
        (partial(SmallCNN, 10, width=8), 8 + 16),
        (partial(McMahanCNN, 10, image_size=16), 32 + 64),
    ):
        assert _size(network(normalisation=normalisation)) - _size(network()) == 2 * channels


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


@pytest.mark.parametrize(("classes", "channels"), [(1000, 3), (10, 1), (100, 4)])
def test_of_torchvisions_network_only_the_first_and_the_last_layer_are_adapted(
    classes: int, channels: int
) -> None:
    # 11,689,512 are those of 1000 classes and three channels, as torchvision documents them.
    expected = 11_689_512 + (classes - 1000) * (512 + 1) + (channels - 3) * 64 * 7 * 7
    assert _size(torchvision_resnet18(classes, channels)) == expected


def test_it_is_torchvisions_own_network_with_its_own_weights() -> None:
    torch.manual_seed(3)
    ours = torchvision_resnet18(10).state_dict()
    torch.manual_seed(3)
    theirs = resnet18(weights=None, num_classes=10).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_number_of_groups_is_as_documented() -> None:
    documented = {1: 1, 2: 1, 3: 1, 5: 1, 6: 2, 12: 4, 16: 8, 32: 16, 64: 32, 512: 32}
    assert {channels: groups_of(channels) for channels in documented} == documented


@given(st.integers(2, 2048))
def test_groups_divide_the_channels_and_hold_two_or_more(channels: int) -> None:
    groups = groups_of(channels)
    assert groups <= 32
    assert channels % groups == 0
    assert channels // groups >= 2
