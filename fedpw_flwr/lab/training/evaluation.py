"""How well a model does on images it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedpw_flwr.lab.data.images import ImageSet
from fedpw_flwr.lab.training.batches import Normalisation
from fedpw_flwr.lab.training.memory import keep_freed_memory

BATCH_SIZE = 256
"""Images that are classified at a time."""

# More test sets than these cost a copy to the device each time, no failure.
_TEST_SETS_KEPT = 16


@dataclass(frozen=True)
class Evaluation:
    """A model's result on so many images: mean cross-entropy in nats, and accuracy, 0 to 1."""

    loss: float
    accuracy: float
    num_examples: int


@dataclass(frozen=True)
class Scores:
    """What a model does with images: cross-entropy summed over each batch, and what is right.

    `correct`, bool (N,), has one entry an image.
    """

    losses: list[float]
    correct: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Join the scores of one set's batches, in their order."""
        losses = [loss for part in parts for loss in part.losses]
        return cls(losses, torch.cat([part.correct for part in parts]))

    def evaluation(self) -> Evaluation:
        """Return mean loss and accuracy over all images."""
        count = len(self.correct)
        return Evaluation(sum(self.losses) / count, int(self.correct.sum()) / count, count)

    def accuracies(self, sizes: Sequence[int]) -> list[float]:
        """Return the accuracy, 0 to 1, of each of the parts that a set is joined from."""
        if min(sizes, default=0) < 1 or sum(sizes) != len(self.correct):
            raise ValueError(
                f"{len(self.correct)} images cannot be divided into parts of {list(sizes)}, each "
                "of at least 1"
            )
        return [int(part.sum()) / len(part) for part in self.correct.split(list(sizes))]


def scores(
    model: nn.Module,
    image_set: ImageSet,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    batch_size: int = BATCH_SIZE,
    batches: slice = slice(None),
) -> Scores:
    """Classify at least one image with `model`, and leave it on `device` in evaluation mode.

    `mean` and `std` are those of training. `batch_size` changes memory and time, not the result;
    `batches` says which of the batches to take. The sets used last stay on the device, and on a CPU
    the process keeps freed memory from then on, see
    :func:`fedpw_flwr.lab.training.memory.keep_freed_memory`.
    """
    if len(image_set) == 0:
        raise ValueError("cannot evaluate on 0 images")
    device = torch.device(device)
    if device.type == "cpu":
        keep_freed_memory()
    model.to(device).eval()
    normalisation = Normalisation(mean, std, device)
    images, labels = (one.split(batch_size)[batches] for one in _on_device(image_set, device))
    losses, correct = [], []
    with torch.inference_mode():
        for some, theirs in zip(images, labels, strict=True):
            logits = model(normalisation(some).contiguous())
            losses.append(cross_entropy(logits, theirs, reduction="sum"))
            correct.append(logits.argmax(dim=1) == theirs)
        return Scores(torch.stack(losses).tolist(), torch.cat(correct).cpu())


def evaluate(
    model: nn.Module,
    image_set: ImageSet,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    batch_size: int = BATCH_SIZE,
) -> Evaluation:
    """Return a model's loss and accuracy on a set of images, as `scores` finds them."""
    found = scores(model, image_set, mean=mean, std=std, device=device, batch_size=batch_size)
    return found.evaluation()


@lru_cache(maxsize=_TEST_SETS_KEPT)
def _on_device(image_set: ImageSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return images and labels on `device`, put there once a process; sets go by identity."""
    return image_set.images.to(device), image_set.labels.to(device)
