"""Batches cut from pictures in memory: shuffled, randomly cropped and normalised.

A ``DataLoader`` handles pictures one by one in Python, which costs more than training a small
network on them. Here all pictures lie on the device as ``uint8``, and one gather cuts a batch with
a crop of its own for each picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedpw_flwr.data.images import ImageSet


class Normalisation:
    """Maps ``uint8`` pixels of shape (..., C) to floats of about zero mean and unit deviation.

    Parameters
    ----------
    mean, std : sequence of float
        One number a channel, in the 0-1 scale.
    device : torch.device
        Where the pictures are.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        deviation = torch.tensor(std, dtype=torch.float32, device=device)
        self._scale = 1.0 / (255.0 * deviation)
        self._shift = -torch.tensor(mean, dtype=torch.float32, device=device) / deviation

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return (pixels / 255 - mean) / std as float32, of the same shape."""
        return torch.addcmul(self._shift, pixels.float(), self._scale)


def training_batches(
    pictures: ImageSet,
    normalisation: Normalisation,
    *,
    batch_size: int,
    crop_padding: int,
    epochs: int,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled batches of `epochs` passes over `pictures`.

    Parameters
    ----------
    pictures : ImageSet
        N pictures, on the device that trains.
    normalisation : Normalisation
        Applied after cropping: the padding is black before it, as torchvision's ``RandomCrop``
        pads.
    batch_size : int
        Pictures a batch. A last batch of one picture is joined to the one before: BatchNorm needs
        two values a channel.
    crop_padding : int
        Black pixels on each side before the random crop, 0 for no crop.
    epochs : int
        Passes, each in an order of its own.
    generator : torch.Generator
        On the CPU; the only source of randomness, so the batches are the same on every device.

    Yields
    ------
    images : Tensor
        ``float32`` of shape (B, C, H, W), contiguous.
    labels : Tensor
        ``int64`` of shape (B,).
    """
    device = pictures.images.device
    count, _, height, width = pictures.images.shape
    margin = (crop_padding,) * 4
    pixels = pad(pictures.images, margin).permute(0, 2, 3, 1).contiguous()
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        corners = torch.randint(0, 2 * crop_padding + 1, (2, count), generator=generator)
        order, corners = order.to(device), corners.to(device)
        start = 0
        while start < count:
            stop = start + batch_size
            if stop == count - 1 and batch_size > 1:
                stop = count
            chosen, (top, left) = order[start:stop], corners[:, start:stop]
            cut = pixels[
                chosen[:, None, None],
                (top[:, None] + rows)[:, :, None],
                (left[:, None] + columns)[:, None, :],
            ]
            yield normalisation(cut).permute(0, 3, 1, 2).contiguous(), pictures.labels[chosen]
            start = stop
