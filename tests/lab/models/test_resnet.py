from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, relu

from fedpw_flwr.lab.data.embedded_digits import embedded_digits
from fedpw_flwr.lab.models.normalisation import Normalisation
from fedpw_flwr.lab.models.resnet import BLOCKS, BasicBlock, ResNet, ResNet10
from fedpw_flwr.lab.training.evaluation import evaluate
from fedpw_flwr.lab.training.loop import client_generator, train
from fedpw_flwr.lab.training.settings import ClientSettings


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _size_by_hand(depth: int, width: int, in_channels: int, classes: int) -> int:
    """Count weights of convolutions and the classifier, and two numbers a normalised channel."""
    convolutions = [(in_channels, width, 3)]
    channels = width
    for stage, count in enumerate(BLOCKS[depth]):
        out = width * 2**stage
        for index in range(count):
            convolutions += [(channels, out, 3), (out, out, 3)]
            if index == 0 and stage > 0:
                convolutions.append((channels, out, 1))
            channels = out
    weights = sum(out * (channels * side**2 + 2) for channels, out, side in convolutions)
    return weights + (8 * width + 1) * classes


def test_width_64_is_the_network_of_the_paper() -> None:
    model = ResNet10(num_classes=10, width=64)
    assert _size(model) == 4_903_242
    assert len(model.state_dict()) == 74


@pytest.mark.parametrize("depth", BLOCKS)
def test_depth_counts_layers_on_the_longest_path_and_stages_halve_the_image(depth: int) -> None:
    for width, in_channels, classes in ((4, 3, 10), (6, 1, 100)):
        model = ResNet(classes, in_channels, width, depth=depth)
        assert _size(model) == _size_by_hand(depth, width, in_channels, classes)
        layers = [
            name
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Conv2d | nn.Linear) and "shortcut" not in name
        ]
        assert len(layers) == depth
        assert model.stages(torch.zeros(2, width, 32, 32)).shape == (2, 8 * width, 4, 4)


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
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(ResNet10(num_classes=10, width=4).state_dict())
    same, other = (
        all(torch.equal(states[0][name], state[name]) for name in states[0]) for state in states[1:]
    )
    assert same
    assert not other


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


@pytest.mark.parametrize(("normalisation", "epochs"), [("group", 4), ("none", 12)])
def test_it_learns_digits_without_running_statistics(
    normalisation: Normalisation, epochs: int
) -> None:
    torch.manual_seed(0)
    model = ResNet10(10, width=8, normalisation=normalisation)
    digits = embedded_digits(["scans"])
    (domain,) = digits.domains
    train(
        model,
        domain.train,
        ClientSettings(epochs=epochs, batch_size=16, learning_rate=0.05, crop_padding=1),
        mean=digits.mean,
        std=digits.std,
        device="cpu",
        generator=client_generator(0, 1, 0),
    )
    result = evaluate(model, domain.test, mean=digits.mean, std=digits.std, device="cpu")
    assert result.accuracy > 0.35


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


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ResNet10(num_classes=10, width=0)
    with pytest.raises(ValueError, match="depth must be one of 10, 12, 18, 20, 34, got 50"):
        ResNet(num_classes=10, depth=50)
