"""How well a model does on pictures it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedpw_flwr.data.images import ImageSet
from fedpw_flwr.training.batches import Normalisation
from fedpw_flwr.training.memory import keep_freed_memory
from fedpw_flwr.training.resident import on_device


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
    :func:`fedpw_flwr.training.memory.keep_freed_memory`.

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
    device = torch.device(device)
    if device.type == "cpu":
        keep_freed_memory()
    model.to(device).eval()
    normalisation = Normalisation(mean, std, device)
    resident = on_device(pictures, device)
    count = len(pictures)
    # What is made in inference mode can never be trained on or loaded into again: the model and the
    # pictures were moved before.
    with torch.inference_mode():
        loss = torch.zeros((), dtype=torch.float64, device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        for images, labels in zip(
            resident.images.split(batch_size), resident.labels.split(batch_size), strict=True
        ):
            logits = model(normalisation(images).contiguous())
            loss += cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(dim=1) == labels).sum()
    return Evaluation(float(loss) / count, int(correct) / count, count)
