from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, relu
from torch.nn.utils import parameters_to_vector

from fedpw_flwr.lab.models.normalisation import Normalisation
from fedpw_flwr.lab.models.resnet import BLOCKS, BasicBlock, ResNet, ResNet10

SIZES = {10: 4_903_242, 12: 4_977_226, 18: 11_173_962, 20: 11_247_946, 34: 21_282_122}
"""Parameters at width 64 with 10 classes: of the paper's network, and as published for 18 and 34.

12 and 20 have one block more than 10 and 18: 2 x (64 x 64 x 9 + 2 x 64) parameters.
"""


@pytest.mark.parametrize("depth", BLOCKS)
def test_depth_counts_layers_on_the_longest_path_and_stages_halve_the_image(depth: int) -> None:
    model = ResNet(10, width=64, depth=depth)
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[depth]
    layers = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(layers) == depth
    assert model.stages(torch.zeros(2, 64, 32, 32)).shape == (2, 512, 4, 4)


def test_saved_models_of_depth_ten_find_their_tensors_by_the_same_names_in_the_same_order() -> None:
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    names = ["stem.weight", *(f"bn.{name}" for name in norm)]
    for stage in range(4):
        for index in (1, 2):
            names.append(f"stages.{stage}.conv{index}.weight")
            names += [f"stages.{stage}.bn{index}.{name}" for name in norm]
        if stage > 0:
            names.append(f"stages.{stage}.shortcut.0.weight")
            names += [f"stages.{stage}.shortcut.1.{name}" for name in norm]
    names += ["classifier.weight", "classifier.bias"]
    assert list(ResNet10(num_classes=10, width=2).state_dict()) == names
    assert list(ResNet(10, width=2, depth=10).state_dict()) == names


def test_seed_decides_the_initial_weights() -> None:
    first, same, other = (_weights(seed) for seed in (5, 5, 6))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def _weights(seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return parameters_to_vector(ResNet10(num_classes=10, width=4).parameters())


@pytest.mark.parametrize("normalisation", ["group", "none"])
def test_without_running_statistics_an_image_is_seen_alone(normalisation: Normalisation) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 16, 16)
    model = ResNet(10, width=4, depth=12, normalisation=normalisation)
    assert not list(model.buffers())
    assert torch.allclose(model(images)[:1], model(images[:1]), atol=1e-5)
    batch = ResNet(10, width=4, depth=12)
    assert not torch.allclose(batch(images)[:1], batch(images[:1]), atol=1e-3)


def test_without_normalisation_convolutions_have_a_bias() -> None:
    bare = ResNet(10, width=4, depth=20, normalisation="none")
    convolutions = [layer for layer in bare.modules() if isinstance(layer, nn.Conv2d)]
    assert all(layer.bias is not None for layer in convolutions)


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
    assert isinstance(block.shortcut, nn.Sequential)
    convolution, norm = block.shortcut
    assert isinstance(convolution, nn.Conv2d)
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
