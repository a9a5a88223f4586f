"""ℓ_k from federated evaluation, for clients whose training reports no loss.

The evaluation that ends a round is of the model from which clients train in the next one, so ℓ_k is
the loss before that training. Clients are known by client id, and by node until they tell it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any, Self


@dataclass(frozen=True)
class EvaluatedLosses:
    """What the losses were when each client was last evaluated.

    `last` has by client its loss and the median of that evaluation; `median` is that of the newest,
    0 before the first.
    """

    last: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    median: float = 0.0

    def after(self, told: Mapping[int, float]) -> Self:
        """Return the losses after one more evaluation, of these clients."""
        # One of the values, which no sum can make infinite.
        median = median_low(told.values()) if told else self.median
        newest = {client: (loss, median) for client, loss in told.items()}
        return type(self)({**self.last, **newest}, median)

    def known(self, client: int, node: int) -> float | None:
        """Return a client's loss, None if it never told one.

        One of an earlier evaluation keeps its ratio to the median.
        """
        loss, median = self.last.get(client) or self.last.get(node) or (None, self.median)
        if loss is None or median in (0.0, self.median):
            return loss
        moved = loss / median * self.median
        return moved if math.isfinite(moved) else self.median

    def counted(self, client: int, node: int) -> float:
        """Return the same, the median in place of None."""
        loss = self.known(client, node)
        return self.median if loss is None else loss

    def to_dict(self) -> dict[str, Any]:
        """Return the losses as JSON can hold them."""
        return {"last": dict(self.last), "median": self.median}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Return what `to_dict` returned; KeyError, TypeError, ValueError if it is not such."""
        last = {int(key): (float(loss), float(one)) for key, (loss, one) in saved["last"].items()}
        return cls(last, float(saved["median"]))
