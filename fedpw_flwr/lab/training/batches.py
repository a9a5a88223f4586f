"""Batches cut from pictures in memory: shuffled, randomly cropped or mirrored, and normalised.

A ``DataLoader`` handles pictures one by one in Python, which costs a small network a good part of
its training time. Here all pictures lie on the device as ``uint8``, and one gather cuts a batch
with a crop of its own for each picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedpw_flwr.lab.data.images import ImageSet
from fedpw_flwr.lab.training.resident import padded_on_device


class Normalisation:
    """Maps ``uint8`` pixels of shape (B, C, H, W) to floats of about zero mean and unit deviation.

    Parameters
    ----------
    mean, std : sequence of float
        One number a channel, in the 0-1 scale.
    device : torch.device
        Where the pictures are.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        deviation = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self._scale = (1.0 / (255.0 * deviation)).to(device)
        self._shift = (-torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1) / deviation).to(
            device
        )

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
    device: torch.device | None = None,
    horizontal_flip: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled batches of `epochs` passes over `pictures`.

    Parameters
    ----------
    pictures : ImageSet
        N pictures. Those of the clients met last stay on the device.
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
    device : torch.device, optional
        Where to train, and where `normalisation` is. Default: where the pictures are.
    horizontal_flip : bool, default False
        Mirror each picture, after its crop, with probability 1/2.

    Yields
    ------
    images : Tensor
        ``float32`` of shape (B, C, H, W), contiguous.
    labels : Tensor
        ``int64`` of shape (B,).
    """
    device = pictures.images.device if device is None else device
    count, _, height, width = pictures.images.shape
    padded, classes = padded_on_device(pictures, device, crop_padding)
    # windows[n, y, x] is picture n cropped at (y, x): a view, no copy.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        corners = torch.randint(0, 2 * crop_padding + 1, (2, count), generator=generator)
        draws = [order[None], corners]
        if horizontal_flip:
            # Drawn last: orders and crops are those of a run without.
            draws.append(torch.randint(0, 2, (1, count), generator=generator))
        order, top, left, *mirrored = _uploaded(torch.cat(draws), device)
        start = 0
        while start < count:
            stop = start + batch_size
            if stop == count - 1 and batch_size > 1:
                stop = count
            # Corners are drawn for places in the order, not for pictures.
            chosen = order[start:stop]
            cut = windows[chosen, top[start:stop], left[start:stop]]
            for mirror in mirrored:
                cut = torch.where(mirror[start:stop, None, None, None].bool(), cut.flip(3), cut)
            yield normalisation(cut).contiguous(), classes[chosen]
            start = stop


def _uploaded(draws: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for the work that is queued there."""
    if device.type == "cuda":
        return draws.pin_memory().to(device, non_blocking=True)
    return draws.to(device)
