"""Batches cut from images in memory: shuffled, randomly cropped or mirrored, and normalised.

A ``DataLoader`` handles images one by one in Python, which costs a small network a good part of
its training time. Here all images lie on the device as ``uint8``, and one gather cuts a batch with
a crop of its own for each image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedpw_flwr.lab.data.images import ImageSet

# Enough for the clients of the usual federations; more of them cost a copy each time, no failure.
_CLIENTS_KEPT = 32


class Normalisation:
    """Maps ``uint8`` pixels (B, C, H, W) on `device` to floats of about zero mean, unit deviation.

    `mean` and `std` have one number a channel, in the 0-1 scale.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        deviation = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        shift = -torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1) / deviation
        self._scale = (1.0 / (255.0 * deviation)).to(device)
        self._shift = shift.to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return (pixels / 255 - mean) / std as float32, of the same shape."""
        return torch.addcmul(self._shift, pixels.float(), self._scale)


def training_batches(
    image_set: ImageSet,
    normalisation: Normalisation,
    *,
    batch_size: int,
    crop_padding: int,
    epochs: int,
    generator: torch.Generator,
    device: torch.device | None = None,
    horizontal_flip: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled batches of `epochs` passes: images, float32 (B, C, H, W), and labels (B,).

    Each image gets `crop_padding` black pixels on each side, as torchvision's ``RandomCrop`` pads,
    is cropped to its size, and with `horizontal_flip` mirrored with probability 1/2. A last batch
    of one image is joined to the one before: BatchNorm needs two values a channel. `generator`, on
    the CPU, is the only source of randomness, so the batches are the same on every device.
    `device` is where to train and where `normalisation` is; default: where the images are.
    """
    device = image_set.images.device if device is None else device
    count, _, height, width = image_set.images.shape
    padded, classes = padded_on_device(image_set, device, crop_padding)
    # windows[n, y, x] is image n cropped at (y, x): a view, no copy.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)
    for _ in range(epochs):
        # Draw the epoch's order and crops.
        order = torch.randperm(count, generator=generator)
        corners = torch.randint(0, 2 * crop_padding + 1, (2, count), generator=generator)
        draws = [order[None], corners]
        if horizontal_flip:
            # Drawn last: orders and crops are those of a run without.
            draws.append(torch.randint(0, 2, (1, count), generator=generator))
        order, top, left, *mirrored = _uploaded(torch.cat(draws), device)

        # Cut its batches.
        start = 0
        while start < count:
            stop = start + batch_size
            if stop == count - 1 and batch_size > 1:
                stop = count
            # Corners are drawn for ranks in the order, not for images.
            chosen = order[start:stop]
            cut = windows[chosen, top[start:stop], left[start:stop]]
            for mirror in mirrored:
                cut = torch.where(mirror[start:stop, None, None, None].bool(), cut.flip(3), cut)
            yield normalisation(cut).contiguous(), classes[chosen]
            start = stop


@lru_cache(maxsize=_CLIENTS_KEPT)
def padded_on_device(
    image_set: ImageSet, device: torch.device, padding: int
) -> tuple[Tensor, Tensor]:
    """Return images with black margins, and labels, on `device`: put there once a process.

    A Ray worker meets the same clients round after round. Image sets are told apart by identity;
    neither they nor what is returned may be changed.
    """
    return pad(image_set.images.to(device), (padding,) * 4), image_set.labels.to(device)


def _uploaded(draws: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for the work that is queued there."""
    if device.type == "cuda":
        return draws.pin_memory().to(device, non_blocking=True)
    return draws.to(device)
