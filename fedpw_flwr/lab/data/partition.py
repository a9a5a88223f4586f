"""Which client trains on which pictures.

Cross-domain federations give each client pictures of a single domain: a hospital has one scanner.
Within a domain, clients hold all classes alike (:class:`ByDomain`), or differ in them as the
fair-FL papers have it: :class:`Dirichlet`, :class:`Pathological` (Pat-1, Pat-2), :class:`Shards`.
Who gets what is decided by flwr-datasets' partitioners, on indices and labels alone, so it needs no
internet and copies each picture once. The same seed gives the same division on every machine, and a
domain's does not depend on the other domains.

Each client may keep a part of its own pictures for testing (`test_share`): it never trains on them.

**To add a partition**, write a class with the two methods of :class:`Partition` and a file
``conf/partition/NAME.yaml`` with its ``_target_``.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from flwr_datasets.partitioner import Partitioner
    from numpy.typing import NDArray

    from fedpw_flwr.lab.data.images import Domain, DomainCollection, ImageSet

__all__ = ["ByDomain", "ClientShare", "Dirichlet", "Partition", "Pathological", "Shards"]

_DRAWS = 10
"""How often a division is tried, each time with other draws."""

_ALPHAS = (1e-10, 1e300)
"""Beyond these NumPy draws what is no distribution. Within, Dir(α) comes to its limits: one client
has all of a class, or all have equal shares."""


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
    test : ImageSet | None (default: None)
        Pictures of its own that it never trains on; None where it keeps none.
    """

    client_id: int
    domain: str
    train: ImageSet
    test: ImageSet | None = None


@dataclass(frozen=True, kw_only=True)
class Partition(ABC):
    """Each domain has as many clients of its own, which divide its training pictures.

    Parameters
    ----------
    clients_per_domain : int
        At least 1.
    test_share : float (default: 0.0)
        Part of each client's pictures that it keeps for testing, in [0, 1): at least one where it
        is above 0, and one is left to train on.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    clients_per_domain: int
    test_share: float = 0.0

    def __post_init__(self) -> None:
        if self.clients_per_domain < 1:
            raise ValueError(
                f"clients_per_domain must be at least 1, got {self.clients_per_domain}"
            )
        if not 0 <= self.test_share < 1:
            raise ValueError(
                "test_share is the part of its pictures that a client keeps for testing: at least "
                f"0 and below 1, got {self.test_share}"
            )

    def num_clients(self, domains: Sequence[str]) -> int:
        """Return K for these names of domains, without reading any picture."""
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
            If a domain has fewer pictures than its clients need.
        """
        import numpy as np
        import torch

        shares: list[ClientShare] = []
        for domain in collection.domains:
            for number, held in enumerate(self._divide(domain, seed)):
                kept = 0
                if self.test_share > 0:
                    kept = max(1, round(self.test_share * len(held)))
                    random = np.random.default_rng([seed, number, *domain.name.encode()])
                    held = random.permutation(held)
                if len(held) - kept < 1:
                    raise ValueError(
                        f"client {len(shares)} (domain {domain.name!r}) gets {len(held)} pictures, "
                        f"too few to train on and to keep partition.test_share={self.test_share} "
                        "of: give the clients more pictures, or have fewer clients"
                    )
                indices = torch.tensor(held, dtype=torch.int64)
                shares.append(
                    ClientShare(
                        len(shares),
                        domain.name,
                        train=domain.train.select(indices[kept:]),
                        test=domain.train.select(indices[:kept]) if kept else None,
                    )
                )
        return shares

    @abstractmethod
    def _divide(self, domain: Domain, seed: int) -> list[NDArray[np.int64]]:
        """Return each client's places in the domain's training pictures."""


@dataclass(frozen=True, kw_only=True)
class ByDomain(Partition):
    """Clients of a domain hold random parts of it: they differ only from those of other domains.

    Of a set with a single domain it is the IID division.

    Parameters
    ----------
    clients_per_domain, test_share
        As in :class:`Partition`.
    train_per_client : int or mapping of str to int, optional
        Pictures of each client, for all domains or by the domain's name. Default: all there are,
        divided as equally as possible.
    share : float, optional
        In place of `train_per_client`: the part of a domain's training pictures that each client
        holds, above 0 and at most ``1 / clients_per_domain``. The paper gives each client 1 %
        (0.01).

    Raises
    ------
    ValueError
        If a number is out of range, or both `train_per_client` and `share` are given.
    """

    train_per_client: int | Mapping[str, int] | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
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
        return super().num_clients(domains)

    def _divide(self, domain: Domain, seed: int) -> list[NDArray[np.int64]]:
        import numpy as np
        from flwr_datasets.partitioner import IidPartitioner

        available = len(domain.train)
        wanted = self._pictures_wanted(domain)
        if wanted > available or wanted < self.clients_per_domain:
            raise ValueError(
                f"domain {domain.name!r} has {available} training pictures, its "
                f"{self.clients_per_domain} clients would need {wanted}: change partition."
                "train_per_client, partition.share or partition.clients_per_domain"
            )
        shuffled = np.random.default_rng([seed, *domain.name.encode()]).permutation(available)
        partitioner = IidPartitioner(num_partitions=self.clients_per_domain)
        return _divided(partitioner, shuffled[:wanted], domain, self.clients_per_domain)

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


@dataclass(frozen=True, kw_only=True)
class _ByLabel(Partition):
    """Clients of a domain differ in the classes that they hold."""

    def _divide(self, domain: Domain, seed: int) -> list[NDArray[np.int64]]:
        return self._drawn(domain, seed, self._partitioner)

    def _drawn(
        self, domain: Domain, seed: int, build: Callable[[int], Partitioner]
    ) -> list[NDArray[np.int64]]:
        import numpy as np

        source = np.random.SeedSequence([seed, *domain.name.encode()])
        shuffling, dividing = source.spawn(2)
        shuffled = np.random.default_rng(shuffling).permutation(len(domain.train))
        failure: ValueError | None = None
        # What the partitioners refuse is mostly bad luck, and they give up soon.
        for draw in dividing.generate_state(_DRAWS):
            try:
                with warnings.catch_warnings(action="ignore"):
                    return _divided(build(int(draw)), shuffled, domain, self.clients_per_domain)
            except ValueError as error:
                failure = error
        raise ValueError(
            f"the {len(domain.train)} training pictures of domain {domain.name!r} cannot be "
            f"divided among {self.clients_per_domain} clients: {failure}"
        ) from failure

    @abstractmethod
    def _partitioner(self, seed: int) -> Partitioner:
        """Build flwr-datasets' partitioner."""


@dataclass(frozen=True, kw_only=True)
class Dirichlet(_ByLabel):
    """Each class is divided in shares drawn from a Dirichlet distribution, Dir(α).

    Clients that have more than the average already get nothing of further classes. All pictures are
    given out.

    Parameters
    ----------
    clients_per_domain, test_share
        As in :class:`Partition`.
    alpha : float (default: 0.1)
        α, above 0: small values give most of a class to few clients, infinity equal shares.
    min_pictures : int (default: 10)
        Pictures that each client has at least. The division is drawn again until it is so; where no
        draw comes to it, as among 100 clients of a small set, the clients that have too few get
        the rest at random from those that have most.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    alpha: float = 0.1
    min_pictures: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha > 0:
            raise ValueError(
                f"alpha must be above 0, got {self.alpha}; inf divides each class equally"
            )
        if self.min_pictures < 1:
            raise ValueError(f"min_pictures must be at least 1, got {self.min_pictures}")

    def _divide(self, domain: Domain, seed: int) -> list[NDArray[np.int64]]:
        if len(domain.train) < self.clients_per_domain * self.min_pictures:
            raise ValueError(
                f"the {len(domain.train)} training pictures of domain {domain.name!r} are too few "
                f"for {self.clients_per_domain} clients with partition.min_pictures="
                f"{self.min_pictures} each: lower that, or have fewer clients"
            )
        try:
            return super()._divide(domain, seed)
        except ValueError:
            divided = self._drawn(domain, seed, lambda draw: self._of_at_least(0, draw))
            return self._topped_up(divided, seed)

    def _topped_up(self, divided: list[NDArray[np.int64]], seed: int) -> list[NDArray[np.int64]]:
        """Move pictures from the clients that have most to those that have too few."""
        import numpy as np

        rng = np.random.default_rng([seed, len(divided)])
        for client in range(len(divided)):
            while (missing := self.min_pictures - len(divided[client])) > 0:
                richest = max(range(len(divided)), key=lambda one: len(divided[one]))
                spare = len(divided[richest]) - self.min_pictures
                moved = rng.permutation(divided[richest])[: min(missing, spare)]
                divided[client] = np.concatenate([divided[client], moved])
                divided[richest] = divided[richest][~np.isin(divided[richest], moved)]
        return divided

    def _partitioner(self, seed: int) -> Partitioner:
        return self._of_at_least(self.min_pictures, seed)

    def _of_at_least(self, pictures: int, seed: int) -> Partitioner:
        from flwr_datasets.partitioner import DirichletPartitioner

        return DirichletPartitioner(
            num_partitions=self.clients_per_domain,
            partition_by="label",
            alpha=float(min(max(self.alpha, _ALPHAS[0]), _ALPHAS[1])),
            min_partition_size=pictures,
            self_balancing=True,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class Pathological(_ByLabel):
    """Each client holds only so many classes (Pat-1: one, Pat-2: two).

    The first class of client k is k modulo the number of classes, the others are drawn. All
    pictures are given out, because every class must have a client.

    Parameters
    ----------
    clients_per_domain, test_share
        As in :class:`Partition`.
    classes_per_client : int
        At least 1.

    Raises
    ------
    ValueError
        If a number is out of range; when dividing, if a class would be nobody's.
    """

    classes_per_client: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes_per_client < 1:
            raise ValueError(
                f"classes_per_client must be at least 1, got {self.classes_per_client}"
            )

    def _divide(self, domain: Domain, seed: int) -> list[NDArray[np.int64]]:
        divided = super()._divide(domain, seed)
        labels = domain.train.labels.numpy()
        held = {int(label) for places in divided for label in set(labels[places].tolist())}
        nobodys = sorted(set(labels.tolist()) - held)
        if nobodys:
            raise ValueError(
                f"{len(nobodys)} of the {len(nobodys) + len(held)} classes of domain "
                f"{domain.name!r} would be no client's, as class {nobodys[0]}, and could not be "
                f"learned: {self.clients_per_domain} clients hold "
                f"{self.classes_per_client} each; raise partition.clients_per_domain to the "
                "number of classes, or partition.classes_per_client"
            )
        return divided

    def _partitioner(self, seed: int) -> Partitioner:
        from flwr_datasets.partitioner import PathologicalPartitioner

        return PathologicalPartitioner(
            num_partitions=self.clients_per_domain,
            partition_by="label",
            num_classes_per_partition=self.classes_per_client,
            class_assignment_mode="first-deterministic",
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class Shards(_ByLabel):
    """Pictures are sorted by class and cut into shards, of which each client gets some at random.

    The division of McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data" (AISTATS 2017), who give two shards a client. Of pictures that are too few
    for one more shard each, nobody holds any.

    Parameters
    ----------
    clients_per_domain, test_share
        As in :class:`Partition`.
    shards_per_client : int (default: 2)
        At least 1.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    shards_per_client: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shards_per_client < 1:
            raise ValueError(f"shards_per_client must be at least 1, got {self.shards_per_client}")

    def _partitioner(self, seed: int) -> Partitioner:
        from flwr_datasets.partitioner import ShardPartitioner

        return ShardPartitioner(
            num_partitions=self.clients_per_domain,
            partition_by="label",
            num_shards_per_partition=self.shards_per_client,
            seed=seed,
        )


def _divided(
    partitioner: Partitioner, places: NDArray[np.int64], domain: Domain, clients: int
) -> list[NDArray[np.int64]]:
    """Divide places of a domain's training pictures, in the order given, by a partitioner."""
    # flwr-datasets takes seconds to import: only a process that divides pictures pays for it, the
    # command counts clients without.
    import numpy as np
    from datasets import Dataset

    labels = domain.train.labels.numpy()[places]
    partitioner.dataset = Dataset.from_dict({"index": places, "label": labels})
    return [
        np.asarray(partitioner.load_partition(client)["index"][:], dtype=np.int64)
        for client in range(clients)
    ]
