"""Who holds what: how many images of each class every client of a run trains and tests on."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from fedpw_flwr.lab.runs.strict_json import StrictJson

if TYPE_CHECKING:
    from fedpw_flwr.lab.data.examples import Examples
    from fedpw_flwr.lab.data.partition import ClientShare


@dataclass(frozen=True)
class ClientHolding(StrictJson):
    """The domain of one client's images, and how many of each class it trains and tests on."""

    domain: str
    train: list[int]
    test: list[int]


@dataclass(frozen=True)
class Holdings(StrictJson):
    """The images of all clients, in the order of the client ids.

    ``data_digest`` is the SHA-256 of the images that were divided; None in runs of older versions.
    """

    clients: list[ClientHolding]
    data_digest: str | None = None

    @classmethod
    def of_shares(
        cls, shares: Sequence[ClientShare], num_classes: int, data_digest: str | None = None
    ) -> Self:
        """Count the images of clients 0 to K-1, whose labels lie in ``range(num_classes)``."""
        return cls(
            [
                ClientHolding(
                    share.domain,
                    _counts(share.train, num_classes),
                    _counts(share.test, num_classes),
                )
                for share in shares
            ],
            data_digest,
        )

    def scarce(self) -> dict[str, int]:
        """Return the domains where half of the clients train on fewer images than classes.

        The figure by domain is the upper median of a client's images.
        """
        images: dict[str, list[int]] = {}
        for held in self.clients:
            images.setdefault(held.domain, []).append(sum(held.train))
        classes = max((len(held.train) for held in self.clients), default=0)
        typical = {domain: statistics.median_high(each) for domain, each in images.items()}
        return {domain: median for domain, median in typical.items() if median < classes}

    def to_json(self) -> dict[str, Any]:
        """Return the strict JSON form, in which each client says its id."""
        clients = [{"id": k, **held.to_json()} for k, held in enumerate(self.clients)]
        return super().to_json() | {"clients": clients}


def _counts(examples: Examples | None, num_classes: int) -> list[int]:
    if examples is None:
        return [0] * num_classes
    counts: list[int] = examples.labels.bincount(minlength=num_classes).tolist()
    return counts
