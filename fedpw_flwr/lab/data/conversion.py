"""From a file's arrays to one picture format, so that several sources fit one network.

Sources differ in size (16, 28, 32 pixels) and colour (grey, RGB); all domains of a federation must
agree on one shape.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate


def to_uint8_images(pixels: NDArray[np.uint8], *, image_size: int, channels: int) -> Tensor:
    """Bring grey or RGB pictures to one size and number of channels.

    Parameters
    ----------
    pixels : ndarray of uint8
        Shape (N, H, W), grey, or (N, H, W, 3), RGB.
    image_size : int
        Height and width wanted, in pixels; bilinear with antialiasing, the operator behind
        torchvision's ``resize`` of tensors.
    channels : int
        1 or 3. Grey becomes RGB by repetition.

    Returns
    -------
    Tensor
        ``uint8`` of shape (N, channels, image_size, image_size).

    Raises
    ------
    ValueError
        If the shape is another one, or RGB pictures are asked for as grey.
    """
    if image_size < 1 or channels not in (1, 3):
        raise ValueError(
            f"image_size must be at least 1 and channels 1 or 3, got {image_size} and {channels}"
        )
    if pixels.ndim == 3:
        images = torch.from_numpy(np.ascontiguousarray(pixels)).unsqueeze(1)
    elif pixels.ndim == 4 and pixels.shape[3] == 3:
        if channels == 1:
            raise ValueError("RGB pictures cannot become grey here: set channels to 3")
        images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    else:
        raise ValueError(f"expected shape (N, H, W) or (N, H, W, 3), got {pixels.shape}")
    images = resize(images, image_size)
    if images.shape[1] < channels:
        images = images.repeat(1, channels, 1, 1)
    return images


def resize(images: Tensor, image_size: int) -> Tensor:
    """Resize ``uint8`` images (N, C, H, W) to `image_size` pixels square, bilinear, antialiased."""
    size = (image_size, image_size)
    if tuple(images.shape[2:]) == size:
        return images
    # In parts, because all pictures of a full set as floats would be the peak of the run's memory.
    return torch.cat(
        [
            interpolate(part.float(), size=size, mode="bilinear", antialias=True)
            .round_()
            .clamp_(0, 255)
            .to(torch.uint8)
            for part in images.split(4096)
        ]
    )
