from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2.functional import resize as torchvision_resize

from fedpw_flwr.lab.data.conversion import to_uint8_images
from fedpw_flwr.lab.data.examples import ImageFormat

_random = np.random.default_rng(0)
GREY = _random.integers(0, 256, (5, 28, 28), dtype=np.uint8)
COLOUR = _random.integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)


def _converted(pixels: NDArray[np.uint8], size: int = 28, channels: int = 3) -> torch.Tensor:
    return to_uint8_images(pixels, ImageFormat(size, channels, num_classes=10))


@pytest.mark.parametrize("size", [16, 32])
def test_resizing_agrees_with_torchvision(size: int) -> None:
    images = torch.from_numpy(COLOUR).permute(0, 3, 1, 2)
    reference = torchvision_resize(images, [size, size], antialias=True)
    assert (_converted(COLOUR, size).int() - reference.int()).abs().max() <= 1


def test_images_of_the_right_size_keep_every_pixel_and_grey_is_repeated() -> None:
    assert np.array_equal(_converted(COLOUR).permute(0, 2, 3, 1).numpy(), COLOUR)
    grey = _converted(GREY)
    assert grey.shape == (5, 3, 28, 28)
    assert all(np.array_equal(grey[:, channel], GREY) for channel in range(3))


def test_colour_is_never_silently_dropped_and_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="set channels to 3"):
        _converted(COLOUR, channels=1)
    with pytest.raises(ValueError, match=r"\(N, H, W\) or \(N, H, W, 3\), got \(5, 28\)"):
        _converted(GREY[:, 0])
