from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.nn.functional import conv2d, relu

from fedpw_flwr.models.resnet import BasicBlock, ResNet10

CONF = Path(__file__).parents[2] / "conf"


def test_width_64_is_the_network_of_the_paper() -> None:
    model = ResNet10(num_classes=10, width=64)
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_903_242
    assert len(model.state_dict()) == 74


def test_stages_halve_the_picture_three_times() -> None:
    model = ResNet10(num_classes=10, width=4)
    features = model.stages(torch.zeros(2, 4, 32, 32))
    assert features.shape == (2, 32, 4, 4)


@pytest.mark.parametrize("size", [16, 28, 32])
@pytest.mark.parametrize("name", ["resnet10", "cnn"])
def test_configured_models_accept_pictures_of_any_size_and_channels(name: str, size: int) -> None:
    for channels in (1, 3):
        model = instantiate(
            OmegaConf.load(CONF / "model" / f"{name}.yaml"), num_classes=7, in_channels=channels
        )
        assert model(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_seed_decides_the_initial_weights() -> None:
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(ResNet10(num_classes=10, width=4).state_dict())
    same, other = (
        all(torch.equal(states[0][name], state[name]) for name in states[0]) for state in states[1:]
    )
    assert same
    assert not other


@pytest.mark.parametrize("width", [2, 8, 12])
def test_narrow_networks_train_on_several_threads(width: int) -> None:
    # A strided 1x1 convolution on fewer than 16 channels overwrote foreign memory here.
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = ResNet10(num_classes=10, width=width)
        for batch in (16, 15, 16):
            model(torch.randn(batch, 3, 16, 16)).square().sum().backward()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_shortcut_sees_the_pixels_of_a_strided_convolution() -> None:
    block = BasicBlock(4, 8, stride=2).eval()
    x = torch.randn(2, 4, 9, 9)
    convolution, norm = block.shortcut
    strided = norm(conv2d(x, convolution.weight, stride=2))
    inner = relu(block.bn1(block.conv1(x)))
    expected = relu(block.bn2(block.conv2(inner)) + strided)
    assert torch.allclose(block(x), expected, atol=1e-6)


def test_gradients_keep_the_memory_format_of_the_activations() -> None:
    block = BasicBlock(4, 8, stride=2)
    shape = (2, 4, 8, 8)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    block(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_width_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ResNet10(num_classes=10, width=0)
