"""Batches cut from examples in memory: shuffled; images randomly cropped, mirrored and normalised.

A ``DataLoader`` handles examples one by one in Python, which costs a small network a good part of
its training time. Here all lie on the device, images as ``uint8``, and one gather cuts a batch with
a crop of its own for each image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedpw_flwr.lab.data.examples import Examples, ImageSet

# Enough for the clients of the usual federations; more of them cost a copy each time, no failure.
_CLIENTS_KEPT = 32


class Normalisation:
    """Maps ``uint8`` pixels (B, C, H, W) on `device` to floats of about zero mean, unit deviation.

    `mean` and `std` have one number a channel, in the 0-1 scale; without any, features of another
    kind stay as they are.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | str
    ) -> None:
        self.device = torch.device(device)
        self._is_needed = len(std) > 0
        deviation = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        shift = -torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1) / deviation
        self._scale = (1.0 / (255.0 * deviation)).to(device)
        self._shift = shift.to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return (pixels / 255 - mean) / std as float32, of the same shape."""
        if not self._is_needed:
            return pixels
        return torch.addcmul(self._shift, pixels.float(), self._scale)


def training_batches(
    examples: Examples,
    normalisation: Normalisation,
    *,
    batch_size: int,
    crop_padding: int,
    epochs: int,
    generator: torch.Generator,
    horizontal_flip: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled batches of `epochs` passes: features, float32 (B, ...), and labels (B,).

    Each image gets `crop_padding` black pixels on each side, as torchvision's ``RandomCrop`` pads,
    is cropped to its size, and with `horizontal_flip` mirrored with probability 1/2. A last batch
    of one example is joined to the one before: BatchNorm needs two values a channel.

    They are where `normalisation` is. `generator`, on the CPU, is the only source of randomness, so
    the batches are the same on every device.
    """
    device, count, are_images = normalisation.device, len(examples), isinstance(examples, ImageSet)
    features, classes = padded_on_device(examples, device, crop_padding)
    if are_images:
        height, width = examples.features.shape[2:]
        # windows[n, y, x] is image n cropped at (y, x): a view, no copy.
        features = features.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)
    for _ in range(epochs):
        # Draw the epoch's order and crops.
        draws = [torch.randperm(count, generator=generator)[None]]
        if are_images:
            draws.append(torch.randint(0, 2 * crop_padding + 1, (2, count), generator=generator))
        if are_images and horizontal_flip:
            # Drawn last: orders and crops are those of a run without.
            draws.append(torch.randint(0, 2, (1, count), generator=generator))
        order, *rest = _uploaded(torch.cat(draws), device)
        corners, mirrored = rest[:2], rest[2:]

        # Cut its batches.
        start = 0
        while start < count:
            stop = start + batch_size
            if stop == count - 1 and batch_size > 1:
                stop = count
            # Corners are drawn for ranks in the order, not for images.
            chosen = order[start:stop]
            cut = features[chosen, *(corner[start:stop] for corner in corners)]
            for mirror in mirrored:
                cut = torch.where(mirror[start:stop, None, None, None].bool(), cut.flip(3), cut)
            yield normalisation(cut).contiguous(), classes[chosen]
            start = stop


@lru_cache(maxsize=_CLIENTS_KEPT)
def padded_on_device(
    examples: Examples, device: torch.device, padding: int
) -> tuple[Tensor, Tensor]:
    """Return features, of images with black margins, and labels on `device`: once a process.

    A Ray worker meets the same clients round after round. Examples are told apart by identity;
    neither they nor what is returned may be changed.
    """
    features, labels = examples.features.to(device), examples.labels.to(device)
    return pad(features, (padding,) * 4) if isinstance(examples, ImageSet) else features, labels


def _uploaded(draws: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for the work that is queued there."""
    if device.type == "cuda":
        return draws.pin_memory().to(device, non_blocking=True)
    return draws.to(device)
