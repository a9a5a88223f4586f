"""How well a model does on pictures it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedpw_flwr.lab.data.images import ImageSet
from fedpw_flwr.lab.training.batches import Normalisation
from fedpw_flwr.lab.training.memory import keep_freed_memory
from fedpw_flwr.lab.training.resident import on_device


@dataclass(frozen=True)
class Evaluation:
    """A model's result on one set of pictures.

    Parameters
    ----------
    loss : float
        Mean cross-entropy over the pictures, in nats.
    accuracy : float
        Part of the pictures classified correctly, 0 to 1.
    num_examples : int
        Number of pictures.
    """

    loss: float
    accuracy: float
    num_examples: int


def evaluate(
    model: nn.Module,
    pictures: ImageSet,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    batch_size: int = 256,
) -> Evaluation:
    """Classify `pictures` with `model`, and leave it on `device` in evaluation mode.

    On a CPU the process keeps freed memory from then on, see
    :func:`fedpw_flwr.lab.training.memory.keep_freed_memory`.

    Parameters
    ----------
    model : nn.Module
        Maps (B, C, H, W) to logits (B, classes).
    pictures : ImageSet
        N pictures, N at least 1. The sets used last stay on the device.
    mean, std : sequence of float
        Normalisation, one number a channel in the 0-1 scale: the same as in training.
    device : torch.device or str
        Where to compute.
    batch_size : int, default 256
        Pictures at once; changes memory and time, not the result.

    Raises
    ------
    ValueError
        If there is no picture.
    """
    if len(pictures) == 0:
        raise ValueError("cannot evaluate on 0 pictures")
    device, count = torch.device(device), len(pictures)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with torch.inference_mode():
        for logits, labels in _classified(model, pictures, mean, std, device, batch_size):
            loss += cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(dim=1) == labels).sum()
    return Evaluation(float(loss) / count, int(correct) / count, count)


def accuracy_of_parts(
    model: nn.Module,
    pictures: ImageSet,
    sizes: Sequence[int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    batch_size: int = 256,
) -> list[float]:
    """Classify the pictures of many clients in one go, and count for each client.

    Parameters
    ----------
    model : nn.Module
        As in :func:`evaluate`, as are the other parameters that are not named here.
    pictures : ImageSet
        The first client's pictures, then the second's, and so on.
    sizes : sequence of int
        How many pictures each client has, at least 1; together as many as there are.
    mean, std, device, batch_size
        As in :func:`evaluate`.

    Returns
    -------
    list of float
        Part of each client's pictures classified correctly, 0 to 1.

    Raises
    ------
    ValueError
        If a size is less than 1, or they do not add up to the number of pictures.
    """
    if min(sizes, default=0) < 1 or sum(sizes) != len(pictures):
        raise ValueError(
            f"{len(pictures)} pictures cannot be divided into parts of {list(sizes)}, each of at "
            "least 1"
        )
    device = torch.device(device)
    with torch.inference_mode():
        correct = torch.cat(
            [
                logits.argmax(dim=1) == labels
                for logits, labels in _classified(model, pictures, mean, std, device, batch_size)
            ]
        ).cpu()
    return [int(part.sum()) / len(part) for part in correct.split(list(sizes))]


def _classified(
    model: nn.Module,
    pictures: ImageSet,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    batch_size: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits and labels, batch after batch, of a model in evaluation mode."""
    if device.type == "cpu":
        keep_freed_memory()
    # What is made in inference mode can never be trained on or loaded into again: the model and
    # the pictures are moved outside of it.
    with torch.inference_mode(mode=False):
        model.to(device).eval()
        normalisation = Normalisation(mean, std, device)
        resident = on_device(pictures, device)
    for images, labels in zip(
        resident.images.split(batch_size), resident.labels.split(batch_size), strict=True
    ):
        yield model(normalisation(images).contiguous()), labels
