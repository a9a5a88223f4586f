"""Honest shifts of a domain: the same kind of digit, as another camera or another paper shows it.

Each function takes grey images, ``uint8`` (N, 1, S, S), white digit on black, and returns RGB
images, ``uint8`` (N, 3, S, S). A generator (on the CPU) is the only source of randomness, so a
domain has the same images in every run.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, interpolate

__all__ = ["inverted_on_texture", "rotated_and_blurred"]


def inverted_on_texture(images: Tensor, generator: torch.Generator) -> Tensor:
    """Invert a random colour texture wherever the digit is.

    It is the recipe of MNIST-M, |digit - texture|, with drawn textures in place of photographs.
    """
    count, _, size, _ = images.shape
    base = 255 * torch.rand((count, 3, 1, 1), generator=generator)
    texture = base.expand(count, 3, size, size).clone()
    for cells, strength in ((3, 40.0), (size // 2, 25.0)):
        pattern = torch.randn((count, 3, cells, cells), generator=generator)
        texture += strength * interpolate(
            pattern, size=(size, size), mode="bilinear", align_corners=False
        )
    return _to_uint8((images.float() - texture.clamp_(0, 255)).abs())


def rotated_and_blurred(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn each image by up to 45 degrees, blur it, and add the noise of a weak sensor."""
    count, _, size, _ = images.shape
    angles = (2 * torch.rand(count, generator=generator) - 1) * math.radians(45)
    cosines, sines, zeros = angles.cos(), angles.sin(), torch.zeros_like(angles)
    turn = torch.stack((cosines, -sines, zeros, sines, cosines, zeros), 1).view(count, 2, 3)
    turned = grid_sample(
        images.float(),
        affine_grid(turn, list(images.shape), align_corners=False),
        align_corners=False,
    )
    blurred = _gaussian_blur(turned, sigma=size / 20)
    noise = 12 * torch.randn(blurred.shape, generator=generator)
    return _to_uint8(blurred * 0.7 + 40 + noise).repeat(1, 3, 1, 1)


def _gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), dim=0)
    across = conv2d(images, kernel.view(1, 1, 1, -1), padding=(0, reach))
    return conv2d(across, kernel.view(1, 1, -1, 1), padding=(reach, 0))


def _to_uint8(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)
