"""Which client trains on which pictures.

Cross-domain federations give each client pictures of a single domain: a hospital has one scanner.
:class:`ByDomain` does this with flwr-datasets' partitioners, on indices alone, so it needs no
internet and copies each picture once.

**To add a partition**, write a class with the two methods of :class:`ByDomain` and a file
``conf/partition/NAME.yaml`` with its ``_target_``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from fedpw_flwr.data.images import Domain, DomainCollection, ImageSet


@dataclass(frozen=True, eq=False)
class ClientShare:
    """What one client holds.

    Parameters
    ----------
    client_id : int
        0 to K-1; Flower's partition-id.
    domain : str
        Name of the domain its pictures come from.
    train : ImageSet
        Its own training pictures.
    """

    client_id: int
    domain: str
    train: ImageSet


@dataclass(frozen=True)
class ByDomain:
    """Give each domain its own clients, which divide its training pictures at random.

    Parameters
    ----------
    clients_per_domain : int
        At least 1.
    train_per_client : int or mapping of str to int, optional
        Training pictures of each client, for all domains or by the domain's name. Default: all
        there are, divided as equally as possible.
    share : float, optional
        In place of `train_per_client`: the part of a domain's training pictures that each client
        holds, above 0 and at most ``1 / clients_per_domain``. The paper gives each client 1 %
        (0.01).

    Raises
    ------
    ValueError
        If a number is out of range, or both `train_per_client` and `share` are given.
    """

    clients_per_domain: int
    train_per_client: int | Mapping[str, int] | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if self.clients_per_domain < 1:
            raise ValueError(
                f"clients_per_domain must be at least 1, got {self.clients_per_domain}"
            )
        if self.train_per_client is not None and self.share is not None:
            raise ValueError("give train_per_client or share, not both: set one of them to null")
        if self.share is not None and not 0 < self.share <= 1 / self.clients_per_domain:
            raise ValueError(
                "share is the part of a domain that each of its clients holds: above 0 and at "
                f"most 1 / clients_per_domain = {1 / self.clients_per_domain:g}, got {self.share}"
            )
        counts = self.train_per_client
        for count in counts.values() if isinstance(counts, Mapping) else (counts,):
            if count is not None and count < 1:
                raise ValueError(f"train_per_client must be at least 1, got {counts}")

    def num_clients(self, domains: Sequence[str]) -> int:
        """Return K for these names of domains, without reading any picture.

        Raises
        ------
        ValueError
            If `train_per_client` misses a domain or names one which is not there.
        """
        if isinstance(self.train_per_client, Mapping):
            named, there = set(self.train_per_client), set(domains)
            if named != there:
                raise ValueError(
                    f"partition.train_per_client has numbers for {sorted(named)}, the data set has "
                    f"the domains {sorted(there)}: choose a partition that fits, for example "
                    "partition=by_domain"
                )
        return self.clients_per_domain * len(domains)

    def split(self, collection: DomainCollection, seed: int) -> list[ClientShare]:
        """Divide the training pictures.

        Parameters
        ----------
        collection : DomainCollection
            The domains; only their training pictures are divided.
        seed : int
            At least 0. The same seed gives the same division; a domain's division does not depend
            on the other domains.

        Returns
        -------
        list of ClientShare
            Clients 0 to K-1 in the order of the domains; no picture is given twice.

        Raises
        ------
        ValueError
            If a domain has fewer pictures than its clients need, or `train_per_client` has no
            number for it.
        """
        shares: list[ClientShare] = []
        for domain in collection.domains:
            for indices in self._divide(domain, seed):
                shares.append(ClientShare(len(shares), domain.name, domain.train.select(indices)))
        return shares

    def _divide(self, domain: Domain, seed: int) -> list[torch.Tensor]:
        # flwr-datasets and PyTorch take seconds to import: only a process that divides pictures
        # pays for them, the command counts clients without.
        import numpy as np
        import torch
        from datasets import Dataset
        from flwr_datasets.partitioner import IidPartitioner

        available = len(domain.train)
        wanted = self._pictures_wanted(domain)
        if wanted > available or wanted < self.clients_per_domain:
            raise ValueError(
                f"domain {domain.name!r} has {available} training pictures, its "
                f"{self.clients_per_domain} clients would need {wanted}: change partition."
                "train_per_client, partition.share or partition.clients_per_domain"
            )
        shuffled = Dataset.from_dict({"index": range(available)}).shuffle(
            generator=np.random.default_rng([seed, *domain.name.encode()])
        )
        partitioner = IidPartitioner(num_partitions=self.clients_per_domain)
        partitioner.dataset = shuffled.select(range(wanted))
        return [
            torch.tensor(partitioner.load_partition(client)["index"][:], dtype=torch.int64)
            for client in range(self.clients_per_domain)
        ]

    def _pictures_wanted(self, domain: Domain) -> int:
        available = len(domain.train)
        if self.share is not None:
            return self.clients_per_domain * int(available * self.share)
        if self.train_per_client is None:
            return available
        if isinstance(self.train_per_client, Mapping):
            if domain.name not in self.train_per_client:
                raise ValueError(
                    f"partition.train_per_client has no number for domain {domain.name!r}: add it, "
                    "or give one number for all domains"
                )
            return self.clients_per_domain * self.train_per_client[domain.name]
        return self.clients_per_domain * self.train_per_client
