from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from fedpw_flwr.lab.models.torchvision_resnet import torchvision_resnet18

PUBLISHED = 11_689_512
"""Parameters with 1000 classes and three channels, as torchvision documents them."""


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("classes", "channels"), [(1000, 3), (10, 3), (10, 1), (100, 4)])
def test_only_the_first_and_the_last_layer_are_adapted(classes: int, channels: int) -> None:
    expected = PUBLISHED + (classes - 1000) * (512 + 1) + (channels - 3) * 64 * 7 * 7
    assert _size(torchvision_resnet18(classes, channels)) == expected


def test_it_is_torchvisions_own_network_with_its_own_weights() -> None:
    torch.manual_seed(3)
    ours = torchvision_resnet18(10).state_dict()
    torch.manual_seed(3)
    theirs = resnet18(weights=None, num_classes=10).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
