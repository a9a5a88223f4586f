"""Four domains of digits without any download: a first run works on any machine.

``scans`` are handwritten digits as scikit-learn bundles them (8x8 grey scans of the UCI optical
recognition set), enlarged; ``textured`` are inverted on coloured textures; ``blurred`` are rotated,
blurred and noisy; ``fonts`` are drawn from fonts, see :mod:`fedpw_flwr.lab.data.rendered_digits`.
The three handwritten domains hold disjoint thirds of the 1,797 scans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib.metadata import distribution

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, interpolate, pad

from fedpw_flwr.lab.data.conversion import resize
from fedpw_flwr.lab.data.examples import Domain, DomainCollection, ImageFormat, ImageSet
from fedpw_flwr.lab.data.rendered_digits import RenderedDigits

HANDWRITTEN = ("scans", "textured", "blurred")
"""Domains made of parts of scikit-learn's handwritten digits."""
DOMAINS = (*HANDWRITTEN, "fonts")
"""All domains which can be asked for."""

_TRAIN, _TEST = 399, 200
_DATA_SEED = 20251


def embedded_digits(domains: Sequence[str] = DOMAINS, *, image_size: int = 16) -> DomainCollection:
    """Make the four domains, or some of them: 399 training and 200 test images each, in RGB.

    The images are the same in every run, whatever its seed, and whichever domains are left out.

    Parameters
    ----------
    domains : sequence of str (default: all four)
        Names among ``scans``, ``textured``, ``blurred`` and ``fonts``, in client order.
    image_size : int (default: 16)
        Height and width, in pixels, at least 8.
    """
    wanted = ImageFormat(image_size, channels=3, num_classes=10)
    drawn = RenderedDigits(_TRAIN, _TEST, seed=_DATA_SEED)
    return DomainCollection(
        tuple(
            Domain("fonts", *drawn.read(wanted))
            if name == "fonts"
            else _handwritten(name, image_size)
            for name in domains
        ),
        wanted.num_classes,
    )


def _handwritten(name: str, image_size: int) -> Domain:
    third = HANDWRITTEN.index(name)
    scans, digits = _scans()
    own = np.random.default_rng(_DATA_SEED).permutation(len(digits))[third :: len(HANDWRITTEN)]
    grey = torch.from_numpy((scans[own] * (255 / 16)).round()).unsqueeze(1).to(torch.uint8)
    margin = image_size // 8
    images = pad(resize(grey, image_size - 2 * margin), (margin,) * 4)

    generator = torch.Generator().manual_seed(_DATA_SEED + third)
    if name == "textured":
        images = inverted_on_texture(images, generator)
    elif name == "blurred":
        images = rotated_and_blurred(images, generator)
    else:
        images = images.repeat(1, 3, 1, 1)
    labels = torch.from_numpy(digits[own])
    return Domain(
        name,
        train=ImageSet(images[_TEST:], labels[_TEST:]),
        test=ImageSet(images[:_TEST], labels[:_TEST]),
    )


@cache
def _scans() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return scikit-learn's digits, (1797, 8, 8) from 0 to 16, and their classes."""
    # Its file is read without it: importing scikit-learn and SciPy takes a second or more.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(file), delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def inverted_on_texture(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return grey images (N, 1, S, S) as (N, 3, S, S), a random texture inverted at the digit.

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
    """Turn grey images (N, 1, S, S) by up to 45 degrees, blur them, add a weak sensor's noise."""
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
