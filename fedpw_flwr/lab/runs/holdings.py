"""Who holds what: how many pictures of each class every client of a run trains and tests on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from fedpw_flwr.lab.data.images import ImageSet
    from fedpw_flwr.lab.data.partition import ClientShare

__all__ = ["ClientHolding", "Holdings"]


@dataclass(frozen=True)
class ClientHolding:
    """The pictures of one client.

    Attributes
    ----------
    domain : str
        Name of the domain they come from.
    train, test : list[int], list[int]
        Pictures of each class that it trains on, and that it keeps for testing; shape (classes,).
    """

    domain: str
    train: list[int]
    test: list[int]


@dataclass(frozen=True)
class Holdings:
    """The pictures of all clients.

    Attributes
    ----------
    clients : list[ClientHolding]
        Client k is at place k.
    data_digest : str | None (default: None)
        SHA-256 of the pictures that were divided; None in runs of older versions.
    """

    clients: list[ClientHolding]
    data_digest: str | None = None

    @classmethod
    def of_shares(
        cls, shares: Sequence[ClientShare], num_classes: int, data_digest: str | None = None
    ) -> Self:
        """Count the clients' pictures.

        Parameters
        ----------
        shares : Sequence[ClientShare]
            Clients 0 to K-1.
        num_classes : int
            Labels lie in ``range(num_classes)``.
        data_digest : str | None (default: None)
            SHA-256 of the pictures that were divided.
        """
        return cls(
            [
                ClientHolding(
                    share.domain,
                    train=_counted(share.train, num_classes),
                    test=[0] * num_classes
                    if share.test is None
                    else _counted(share.test, num_classes),
                )
                for share in shares
            ],
            data_digest,
        )

    def scarce(self) -> dict[str, int]:
        """Return the domains where half of the clients train on fewer pictures than classes.

        Returns
        -------
        dict[str, int]
            The upper median of a client's pictures, by domain.
        """
        pictures: dict[str, list[int]] = {}
        for held in self.clients:
            pictures.setdefault(held.domain, []).append(sum(held.train))
        classes = max((len(held.train) for held in self.clients), default=0)
        typical = {domain: statistics.median_high(each) for domain, each in pictures.items()}
        return {domain: median for domain, median in typical.items() if median < classes}

    def to_json(self) -> dict[str, Any]:
        """Return the strict JSON form."""
        return {
            "clients": [
                {"id": client, "domain": held.domain, "train": held.train, "test": held.test}
                for client, held in enumerate(self.clients)
            ],
            **({} if self.data_digest is None else {"data_digest": self.data_digest}),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild from the JSON form."""
        return cls(
            [
                ClientHolding(
                    str(held["domain"]),
                    [int(count) for count in held["train"]],
                    [int(count) for count in held["test"]],
                )
                for held in content["clients"]
            ],
            content.get("data_digest"),
        )


def _counted(pictures: ImageSet, num_classes: int) -> list[int]:
    counts: list[int] = pictures.labels.bincount(minlength=num_classes).tolist()
    return counts
