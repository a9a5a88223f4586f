"""Pictures on the device that computes: put there once a process, not once a round.

A Ray worker meets the same clients round after round, and the server the same test pictures. What
is kept here is found again by the picture set itself, so nobody has to carry it along.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedpw_flwr.lab.data.images import ImageSet

__all__ = ["on_device", "padded_on_device"]

# Enough for the clients of the usual federations; more of them cost a copy each time, no failure.
_SHARES = 32
_TEST_SETS = 16


@lru_cache(maxsize=_SHARES)
def padded_on_device(
    pictures: ImageSet, device: torch.device, padding: int
) -> tuple[Tensor, Tensor]:
    """Return training pictures with black margins, and their labels, on `device`.

    Parameters
    ----------
    pictures : ImageSet
        N pictures; told apart by identity, and not to be changed afterwards.
    device : torch.device
        Where they are needed.
    padding : int
        Black pixels on each side.

    Returns
    -------
    images : Tensor
        ``uint8`` of shape (N, C, H + 2 padding, W + 2 padding). Not to be written to.
    labels : Tensor
        ``int64`` of shape (N,).
    """
    return pad(pictures.images.to(device), (padding,) * 4), pictures.labels.to(device)


@lru_cache(maxsize=_TEST_SETS)
def on_device(pictures: ImageSet, device: torch.device) -> ImageSet:
    """Return test pictures on `device`: themselves if they are there already.

    Parameters
    ----------
    pictures : ImageSet
        Told apart by identity, and not to be changed afterwards.
    device : torch.device
        Where they are needed.
    """
    return pictures.to(device)
