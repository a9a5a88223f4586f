"""How well a model does on examples it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedpw_flwr.lab.data.examples import Examples
from fedpw_flwr.lab.training.batches import Normalisation
from fedpw_flwr.lab.training.memory import keep_freed_memory

BATCH_SIZE = 256
"""Examples that are classified at a time."""

# More test sets than these cost a copy to the device each time, no failure.
_TEST_SETS_KEPT = 16


@dataclass(frozen=True)
class Evaluation:
    """A model's result on so many examples: mean cross-entropy in nats, and accuracy, 0 to 1.

    `auc`, of two classes, is the area under the ROC curve, 0 to 1: how often an example of class 1
    gets a higher score than one of class 0. NaN where there are none of a class.
    """

    loss: float
    accuracy: float
    num_examples: int
    auc: float | None = None


@dataclass(frozen=True)
class Scores:
    """What a model does with examples: cross-entropy summed over each batch, and what is right.

    `correct`, bool (N,), and `labels`, int64 (N,), have one entry an example; so has `margins`,
    where there are two classes: the logit of class 1 less that of class 0.
    """

    losses: list[float]
    correct: Tensor
    labels: Tensor
    margins: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Join the scores of batches, in their order."""
        losses = [loss for part in parts for loss in part.losses]
        correct, labels = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("correct", "labels")
        )
        margins = [part.margins for part in parts if part.margins is not None]
        return cls(losses, correct, labels, torch.cat(margins) if margins else None)

    def evaluation(self) -> Evaluation:
        """Return mean loss, accuracy and, of two classes, AUC over all examples."""
        count = len(self.correct)
        return Evaluation(
            sum(self.losses) / count, int(self.correct.sum()) / count, count, self._auc()
        )

    def _auc(self) -> float | None:
        if self.margins is None:
            return None
        if len(self.labels.unique()) < 2 or not self.margins.isfinite().all():
            return math.nan
        # A second or more to import, which only runs of two classes pay.
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(self.labels.numpy(), self.margins.numpy()))

    def accuracies(self, sizes: Sequence[int]) -> list[float]:
        """Return the accuracy, 0 to 1, of each of the parts that a set is joined from."""
        return [int(part.sum()) / len(part) for part in self.correct.split(list(sizes))]


def scores(
    model: nn.Module,
    examples: Examples,
    normalisation: Normalisation,
    *,
    batch_size: int = BATCH_SIZE,
    batches: slice = slice(None),
) -> Scores:
    """Classify at least one example with `model`, and leave it in evaluation mode.

    `normalisation` is that of training, and says on which device. `batch_size` changes memory and
    time, not the result; `batches` says which of the batches to take. The sets used last stay on
    the device, and on a CPU the process keeps freed memory from then on, see
    :func:`fedpw_flwr.lab.training.memory.keep_freed_memory`.
    """
    device = normalisation.device
    if device.type == "cpu":
        keep_freed_memory()
    model.to(device).eval()
    features, labels = (one.split(batch_size)[batches] for one in _on_device(examples, device))
    losses, correct, margins = [], [], []
    with torch.inference_mode():
        for some, theirs in zip(features, labels, strict=True):
            logits = model(normalisation(some).contiguous())
            losses.append(cross_entropy(logits, theirs, reduction="sum"))
            correct.append(logits.argmax(dim=1) == theirs)
            if logits.shape[1] == 2:
                margins.append((logits[:, 1] - logits[:, 0]).float())
        return Scores(
            torch.stack(losses).tolist(),
            torch.cat(correct).cpu(),
            torch.cat(labels).cpu(),
            torch.cat(margins).cpu() if margins else None,
        )


def evaluate(model: nn.Module, examples: Examples, normalisation: Normalisation) -> Evaluation:
    """Return how a model does on a set of examples, as `scores` finds it."""
    return scores(model, examples, normalisation).evaluation()


@lru_cache(maxsize=_TEST_SETS_KEPT)
def _on_device(examples: Examples, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return features and labels on `device`, put there once a process; sets go by identity."""
    return examples.features.to(device), examples.labels.to(device)
