"""What a server step needs from whatever computes its tensors.

The method decides weights and drop rates from a few numbers a client. Everything of the size of a
model is an engine's work: `reference` does it as the paper writes it, `fedpw_flwr.engines` faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedpw_flwr.algorithm.cohort import Cohort
from fedpw_flwr.algorithm.tensors import TensorKind


@dataclass(frozen=True, eq=False)
class Measured:
    """Factor f (0-d) of one tensor, and its C (bool, shape (n,)) where there is one."""

    factor: Tensor
    members: Tensor | None = None


class Engine(Protocol):
    """The tensors of one round."""

    def directions(self) -> list[float]:
        """Return d_k = ⟨Δ_k, Σ_j Δ_j⟩ over the trainable tensors; asked for before `move`."""
        ...

    def move(self, weights: Sequence[float]) -> Iterator[tuple[str, Tensor, Measured | None]]:
        """Compute the new model's tensors with the weights λ_k, in the order of the global model.

        Yields name, w − g on the CPU in the shape and dtype of w, and what it says about consensus.
        """
        ...


StartEngine = Callable[[Mapping[str, Tensor], Mapping[str, TensorKind], Cohort], Engine]
"""Makes the engine of a round from w, what each tensor is, and the participants."""
