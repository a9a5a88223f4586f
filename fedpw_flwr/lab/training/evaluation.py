"""How well a model does on images it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedpw_flwr.lab.data.images import ImageSet
from fedpw_flwr.lab.training.batches import Normalisation
from fedpw_flwr.lab.training.memory import keep_freed_memory

# More test sets than these cost a copy to the device each time, no failure.
_TEST_SETS_KEPT = 16


@dataclass(frozen=True)
class Evaluation:
    """A model's result on so many images: mean cross-entropy in nats, and accuracy, 0 to 1."""

    loss: float
    accuracy: float
    num_examples: int


def evaluate(
    model: nn.Module,
    image_set: ImageSet,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    batch_size: int = 256,
) -> Evaluation:
    """Classify at least one image with `model`, and leave it on `device` in evaluation mode.

    `mean` and `std` are those of training. `batch_size` changes memory and time, not the result.
    The sets used last stay on the device, and on a CPU the process keeps freed memory from then on,
    see :func:`fedpw_flwr.lab.training.memory.keep_freed_memory`.
    """
    if len(image_set) == 0:
        raise ValueError("cannot evaluate on 0 images")
    device, count = torch.device(device), len(image_set)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with torch.inference_mode():
        for logits, labels in _classified(model, image_set, mean, std, device, batch_size):
            loss += cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(dim=1) == labels).sum()
    return Evaluation(float(loss) / count, int(correct) / count, count)


def accuracy_of_parts(
    model: nn.Module,
    image_set: ImageSet,
    sizes: Sequence[int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    batch_size: int = 256,
) -> list[float]:
    """Classify the images of many clients in one go; return each client's accuracy, 0 to 1.

    `image_set` has the first client's images, then the second's, and so on; `sizes` says how many
    each has, at least 1. The other parameters are :func:`evaluate`'s.
    """
    if min(sizes, default=0) < 1 or sum(sizes) != len(image_set):
        raise ValueError(
            f"{len(image_set)} images cannot be divided into parts of {list(sizes)}, each of at "
            "least 1"
        )
    device = torch.device(device)
    with torch.inference_mode():
        correct = torch.cat(
            [
                logits.argmax(dim=1) == labels
                for logits, labels in _classified(model, image_set, mean, std, device, batch_size)
            ]
        ).cpu()
    return [int(part.sum()) / len(part) for part in correct.split(list(sizes))]


def _classified(
    model: nn.Module,
    image_set: ImageSet,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    batch_size: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits and labels, batch after batch, of a model in evaluation mode."""
    if device.type == "cpu":
        keep_freed_memory()
    # What is made in inference mode can never be trained on or loaded into again: the model and
    # the images are moved outside of it.
    with torch.inference_mode(mode=False):
        model.to(device).eval()
        normalisation = Normalisation(mean, std, device)
        images, labels = _on_device(image_set, device)
    for some, their_labels in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        yield model(normalisation(some).contiguous()), their_labels


@lru_cache(maxsize=_TEST_SETS_KEPT)
def _on_device(image_set: ImageSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return images and labels on `device`, put there once a process; sets go by identity."""
    return image_set.images.to(device), image_set.labels.to(device)
