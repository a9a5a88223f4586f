from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import resize as torchvision_resize

from fedpw_flwr.lab.data.conversion import to_uint8_images

_random = np.random.default_rng(0)
GREY = _random.integers(0, 256, (5, 28, 28), dtype=np.uint8)
COLOUR = _random.integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [16, 32])
def test_resizing_agrees_with_torchvision(size: int) -> None:
    ours = to_uint8_images(COLOUR, image_size=size, channels=3)
    reference = torchvision_resize(
        torch.from_numpy(COLOUR).permute(0, 3, 1, 2), [size, size], antialias=True
    )
    # torchvision rounds in fixed point on a CPU: one grey level of 255 may differ.
    assert (ours.int() - reference.int()).abs().max() <= 1


def test_grey_becomes_rgb_by_repetition() -> None:
    images = to_uint8_images(GREY, image_size=28, channels=3)
    assert images.shape == (5, 3, 28, 28)
    for channel in range(3):
        assert torch.equal(images[:, channel], torch.from_numpy(GREY))


def test_pictures_of_the_right_size_keep_every_pixel() -> None:
    images = to_uint8_images(COLOUR, image_size=28, channels=3)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), COLOUR)


def test_colour_is_never_silently_dropped() -> None:
    with pytest.raises(ValueError, match="set channels to 3"):
        to_uint8_images(COLOUR, image_size=28, channels=1)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(N, H, W\) or \(N, H, W, 3\), got \(5, 28\)"):
        to_uint8_images(GREY[:, 0], image_size=28, channels=3)
