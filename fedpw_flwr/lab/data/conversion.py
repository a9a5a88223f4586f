"""From a file's arrays to one image format, so that several sources fit one network.

Sources differ in size (16, 28, 32 pixels) and colour (grey, RGB); all domains of a federation must
agree on one shape.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from fedpw_flwr.lab.data.examples import ImageFormat


def to_uint8_images(pixels: NDArray[np.uint8], wanted: ImageFormat) -> Tensor:
    """Bring images, grey (N, H, W) or RGB (N, H, W, 3), to the format wanted; as ``uint8``.

    Grey becomes RGB by repetition. Raises ValueError for another shape, and for RGB as grey.
    """
    image_size, channels = wanted.image_size, wanted.channels
    if pixels.ndim != 3 and pixels.shape[3:] != (3,):
        raise ValueError(f"expected shape (N, H, W) or (N, H, W, 3), got {pixels.shape}")
    if pixels.ndim == 4 and channels == 1:
        raise ValueError("RGB images cannot become grey here: set channels to 3")
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    images = resize(images, image_size)
    return images if images.shape[1] == channels else images.repeat(1, channels, 1, 1)


def resize(images: Tensor, image_size: int) -> Tensor:
    """Resize ``uint8`` images (N, C, H, W) to `image_size` pixels square, bilinear, antialiased.

    It is the operator behind torchvision's ``resize`` of tensors.
    """
    size = (image_size, image_size)
    if tuple(images.shape[2:]) == size:
        return images
    # In parts, because all images of a full set as floats would be the peak of the run's memory.
    return torch.cat(
        [
            interpolate(part.float(), size=size, mode="bilinear", antialias=True)
            .round_()
            .clamp_(0, 255)
            .to(torch.uint8)
            for part in images.split(4096)
        ]
    )
