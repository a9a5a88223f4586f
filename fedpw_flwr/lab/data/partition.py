"""Which client trains on which examples.

Cross-domain federations give each client examples of a single domain: a hospital has one scanner.
Within a domain, clients hold all classes alike (:class:`ByDomain`), or differ in them as the
fair-FL papers have it: :class:`Dirichlet`, :class:`Pathological` (Pat-1, Pat-2), :class:`Shards`.
Where labels count, flwr-datasets' partitioners decide who gets what, on indices and labels alone,
so it needs no internet and copies each example once. The same seed gives the same division on every
machine.

**To add a partition**, write a class with the two methods of :class:`Partition` and a file
``conf/partition/NAME.yaml`` with its ``_target_``.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from flwr_datasets.partitioner import Partitioner
    from numpy.typing import NDArray

    from fedpw_flwr.lab.data.examples import Domain, DomainCollection, Examples

# How often a division is tried, each time with other draws.
_DRAWS = 10
# Beyond these NumPy draws what is no distribution. Within, Dir(α) comes to its limits: one client
# has all of a class, or all have equal shares.
_ALPHAS = (1e-10, 1e300)


@dataclass(frozen=True, eq=False)
class ClientShare:
    """What client `client_id` (0 to K-1; Flower's partition-id) holds, of one domain.

    `test` are examples of its own that it never trains on; None where it keeps none.
    """

    client_id: int
    domain: str
    train: Examples
    test: Examples | None = None


@dataclass(frozen=True, kw_only=True)
class Partition(ABC):
    """Each domain has as many clients of its own, which divide its training examples.

    Parameters
    ----------
    clients_per_domain : int
        At least 1.
    test_share : float (default: 0.0)
        Part of each client's examples that it keeps for testing, in [0, 1): at least one where it
        is above 0, and one is left to train on.

    Raises
    ------
    ValueError
        If one of them is out of range.
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
                "test_share is the part of its examples that a client keeps for testing: at least "
                f"0 and below 1, got {self.test_share}"
            )

    def num_clients(self, domains: Sequence[str]) -> int:
        """Return K for these names of domains, without reading any example."""
        return self.clients_per_domain * len(domains)

    def split(self, collection: DomainCollection, seed: int) -> list[ClientShare]:
        """Divide the training examples among clients 0 to K-1, in the order of the domains.

        No example is given twice. The same seed, at least 0, gives the same division; a domain's
        does not depend on the other domains.

        Raises
        ------
        ValueError
            If a domain has fewer examples than its clients need, or the partition is not for it.
        """
        import numpy as np
        import torch

        self.num_clients(collection.names)  # refuses domains that the partition does not fit
        shares: list[ClientShare] = []
        for domain in collection.domains:
            for number, held in enumerate(self._divide(domain, seed)):
                kept = 0
                if self.test_share > 0:
                    kept = max(1, round(self.test_share * len(held)))
                    random = np.random.default_rng([seed, number, *domain.name.encode()])
                    held = random.permutation(held)
                if len(held) <= kept:
                    raise ValueError(
                        f"client {len(shares)} (domain {domain.name!r}) gets {len(held)} examples, "
                        f"too few to train on and to keep partition.test_share={self.test_share} "
                        "of: give the clients more examples, or have fewer clients"
                    )
                indices = torch.tensor(held, dtype=torch.int64)
                train = domain.train.select(indices[kept:])
                test = domain.train.select(indices[:kept]) if kept else None
                shares.append(ClientShare(len(shares), domain.name, train, test))
        return shares

    @abstractmethod
    def _divide(self, domain: Domain, seed: int) -> list[NDArray[np.int64]]:
        """Return each client's indices into the domain's training examples."""

    def _divide_by_label(
        self, domain: Domain, seed: int, partitioner: Callable[..., Partitioner], **options: Any
    ) -> list[NDArray[np.int64]]:
        """Divide by one of the partitioners that look at labels, with its own options."""
        # flwr-datasets takes seconds to import: only a process that divides examples pays for it,
        # the command counts clients without.
        import numpy as np
        from datasets import Dataset

        source = np.random.SeedSequence([seed, *domain.name.encode()])
        shuffling, dividing = source.spawn(2)
        shuffled = np.random.default_rng(shuffling).permutation(len(domain.train))
        labels = domain.train.labels.numpy()[shuffled]
        failure: ValueError | None = None
        # What the partitioners refuse is mostly bad luck, and they give up soon.
        for draw in dividing.generate_state(_DRAWS):
            try:
                with warnings.catch_warnings(action="ignore"):
                    built = partitioner(
                        num_partitions=self.clients_per_domain,
                        partition_by="label",
                        seed=int(draw),
                        **options,
                    )
                    built.dataset = Dataset.from_dict({"index": shuffled, "label": labels})
                    return [
                        np.asarray(built.load_partition(client)["index"][:], dtype=np.int64)
                        for client in range(self.clients_per_domain)
                    ]
            except ValueError as error:
                failure = error
        raise ValueError(
            f"the {len(domain.train)} training examples of domain {domain.name!r} cannot be "
            f"divided among {self.clients_per_domain} clients: {failure}"
        ) from failure


@dataclass(frozen=True, kw_only=True)
class ByDomain(Partition):
    """Clients of a domain hold random parts of it: they differ only from those of other domains.

    Of a set with a single domain it is the IID division.

    Parameters
    ----------
    train_per_client : int or mapping of str to int, optional
        Examples of each client, for all domains or by the domain's name. Default: all there are,
        divided as equally as possible.
    share : float, optional
        In place of `train_per_client`: the part of a domain's training examples that each client
        holds, above 0 and at most ``1 / clients_per_domain``. The paper gives each client 1 %
        (0.01).
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

    def num_clients(self, domains: Sequence[str]) -> int:
        """Return K; raise ValueError if `train_per_client` does not name just these domains."""
        if isinstance(self.train_per_client, Mapping):
            named, there = set(self.train_per_client), set(domains)
            if named != there:
                raise ValueError(
                    f"partition.train_per_client has numbers for {sorted(named)}, the data set has "
                    f"the domains {sorted(there)}: choose a partition that fits, as by_domain does"
                )
        return super().num_clients(domains)

    def _divide(self, domain: Domain, seed: int) -> list[NDArray[np.int64]]:
        import numpy as np

        available, counts = len(domain.train), self.train_per_client
        if self.share is not None:
            wanted = self.clients_per_domain * int(available * self.share)
        elif counts is None:
            wanted = available
        else:
            count = counts[domain.name] if isinstance(counts, Mapping) else counts
            wanted = self.clients_per_domain * count
        if wanted > available or wanted < self.clients_per_domain:
            raise ValueError(
                f"domain {domain.name!r} has {available} training examples, its "
                f"{self.clients_per_domain} clients would need {wanted}: change partition."
                "train_per_client, partition.share or partition.clients_per_domain"
            )
        shuffled = np.random.default_rng([seed, *domain.name.encode()]).permutation(available)
        return np.array_split(shuffled[:wanted], self.clients_per_domain)


@dataclass(frozen=True, kw_only=True)
class Dirichlet(Partition):
    """Each class is divided in shares drawn from a Dirichlet distribution, Dir(α).

    Clients that have more than the average already get nothing of further classes. All examples are
    given out.

    Parameters
    ----------
    alpha : float (default: 0.1)
        α, above 0: small values give most of a class to few clients, infinity equal shares.
    min_pictures : int (default: 10)
        Examples that each client has at least. The division is drawn again until it is so; where no
        draw comes to it, as among 100 clients of a small set, the clients that have too few get
        the rest at random from those that have most.
    """

    alpha: float = 0.1
    min_pictures: int = 10

    def _divide(self, domain: Domain, seed: int) -> list[NDArray[np.int64]]:
        from flwr_datasets.partitioner import DirichletPartitioner

        if len(domain.train) < self.clients_per_domain * self.min_pictures:
            raise ValueError(
                f"the {len(domain.train)} training examples of domain {domain.name!r} are too few "
                f"for {self.clients_per_domain} clients with partition.min_pictures="
                f"{self.min_pictures} each: lower that, or have fewer clients"
            )

        def drawn(min_partition_size: int) -> list[NDArray[np.int64]]:
            return self._divide_by_label(
                domain,
                seed,
                DirichletPartitioner,
                alpha=float(min(max(self.alpha, _ALPHAS[0]), _ALPHAS[1])),
                min_partition_size=min_partition_size,
                self_balancing=True,
            )

        try:
            return drawn(self.min_pictures)
        except ValueError:
            return self._topped_up(drawn(0), seed)

    def _topped_up(self, divided: list[NDArray[np.int64]], seed: int) -> list[NDArray[np.int64]]:
        """Move examples from the clients that have most to those that have too few."""
        import numpy as np

        random = np.random.default_rng([seed, len(divided)])
        for client in range(len(divided)):
            while (missing := self.min_pictures - len(divided[client])) > 0:
                richest = max(range(len(divided)), key=lambda one: len(divided[one]))
                spare = len(divided[richest]) - self.min_pictures
                moved = random.permutation(divided[richest])[: min(missing, spare)]
                divided[client] = np.concatenate([divided[client], moved])
                divided[richest] = divided[richest][~np.isin(divided[richest], moved)]
        return divided


@dataclass(frozen=True, kw_only=True)
class Pathological(Partition):
    """Each client holds only so many classes (Pat-1: one, Pat-2: two).

    The first class of client k is k modulo the number of classes, the others are drawn. All
    examples are given out: a class that would be no client's is an error.
    """

    classes_per_client: int

    def _divide(self, domain: Domain, seed: int) -> list[NDArray[np.int64]]:
        import numpy as np
        from flwr_datasets.partitioner import PathologicalPartitioner

        divided = self._divide_by_label(
            domain,
            seed,
            PathologicalPartitioner,
            num_classes_per_partition=self.classes_per_client,
            class_assignment_mode="first-deterministic",
        )
        labels = domain.train.labels.numpy()
        classes, held = np.unique(labels), np.unique(labels[np.concatenate(divided)])
        nobodys = np.setdiff1d(classes, held)
        if len(nobodys):
            raise ValueError(
                f"{len(nobodys)} of the {len(classes)} classes of domain {domain.name!r} would be "
                f"no client's, as class {nobodys[0]}, and could not be learned: "
                f"{self.clients_per_domain} clients hold {self.classes_per_client} each; raise "
                "partition.clients_per_domain to the number of classes, or "
                "partition.classes_per_client"
            )
        return divided


@dataclass(frozen=True, kw_only=True)
class Shards(Partition):
    """Examples are sorted by class and cut into shards, of which each client gets some at random.

    The division of McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data" (AISTATS 2017), who give two shards a client. Of examples that are too few
    for one more shard each, nobody holds any.
    """

    shards_per_client: int = 2

    def _divide(self, domain: Domain, seed: int) -> list[NDArray[np.int64]]:
        from flwr_datasets.partitioner import ShardPartitioner

        return self._divide_by_label(
            domain, seed, ShardPartitioner, num_shards_per_partition=self.shards_per_client
        )
