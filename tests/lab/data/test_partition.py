from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpw_flwr.lab.config.configuration import compose_configuration
from fedpw_flwr.lab.data.images import Domain, DomainCollection, ImageSet
from fedpw_flwr.lab.data.partition import (
    ByDomain,
    ClientShare,
    Dirichlet,
    Partition,
    Pathological,
    Shards,
)
from fedpw_flwr.lab.experiment import build_group


def _numbered(count: int, first: int = 0) -> ImageSet:
    numbers = torch.arange(first, first + count)
    images = (numbers[:, None] // torch.tensor([65536, 256, 1]) % 256).to(torch.uint8)
    return ImageSet(images[:, :, None, None], torch.zeros(count, dtype=torch.int64))


def _collection(*sizes: int) -> DomainCollection:
    return DomainCollection(
        tuple(
            Domain(f"domain {place}", _numbered(size, first=1000 * place), _numbered(1))
            for place, size in enumerate(sizes)
        ),
        num_classes=10,
    )


def _numbers(share: ClientShare) -> list[int]:
    channels = share.train.images[:, :, 0, 0].int()
    return (channels @ torch.tensor([65536, 256, 1], dtype=torch.int32)).tolist()


@settings(deadline=None, max_examples=20)
@given(
    sizes=st.lists(st.integers(4, 40), min_size=1, max_size=3),
    clients=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_every_picture_goes_to_one_client_of_its_domain(
    sizes: list[int], clients: int, seed: int
) -> None:
    collection = _collection(*sizes)
    partition = ByDomain(clients_per_domain=clients)
    shares = partition.split(collection, seed)
    assert [share.client_id for share in shares] == list(
        range(partition.num_clients(collection.names))
    )
    for place, (name, size) in enumerate(zip(collection.names, sizes, strict=True)):
        own = [share for share in shares if share.domain == name]
        held = Counter(number for share in own for number in _numbers(share))
        assert held == Counter(range(1000 * place, 1000 * place + size))
        assert max(len(share.train) for share in own) - min(len(s.train) for s in own) <= 1


def test_same_seed_gives_the_same_division_and_another_seed_another() -> None:
    partition, collection = ByDomain(clients_per_domain=2, train_per_client=10), _collection(100)
    first, again, other = (
        [_numbers(share) for share in partition.split(collection, seed)] for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_division_of_a_domain_does_not_depend_on_the_others() -> None:
    partition = ByDomain(clients_per_domain=2, train_per_client=5)
    both, alone = partition.split(_collection(30, 40), 0), partition.split(_collection(30), 0)
    assert [_numbers(share) for share in both[:2]] == [_numbers(share) for share in alone]


def test_clients_hold_the_number_of_pictures_asked_for() -> None:
    counts = {"domain 0": 7, "domain 1": 12}
    shares = ByDomain(clients_per_domain=2, train_per_client=counts).split(_collection(30, 30), 0)
    assert [len(share.train) for share in shares] == [7, 7, 12, 12]
    shares = ByDomain(clients_per_domain=3, share=0.1).split(_collection(55), 0)
    assert [len(share.train) for share in shares] == [5, 5, 5]


def test_more_pictures_than_a_domain_has_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="'domain 1' has 9 training pictures, its 2 clients would"):
        ByDomain(clients_per_domain=2, train_per_client=5).split(_collection(10, 9), 0)


def test_client_without_any_picture_is_an_error() -> None:
    with pytest.raises(ValueError, match="would need 0"):
        ByDomain(clients_per_domain=2, share=0.01).split(_collection(50), 0)


def test_domain_without_a_number_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="no number for domain 'domain 1'"):
        ByDomain(clients_per_domain=1, train_per_client={"domain 0": 3}).split(_collection(5, 5), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients_per_domain": 0}, "clients_per_domain must be at least 1"),
        ({"clients_per_domain": 1, "train_per_client": 0}, "train_per_client must be at least 1"),
        ({"clients_per_domain": 3, "share": 0.5}, r"at most 1 / clients_per_domain = 0.333333"),
        ({"clients_per_domain": 1, "share": 0.5, "train_per_client": 3}, "not both"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ByDomain(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["embedded_digits", "four_domains"])
def test_configured_partition_covers_the_domains_of_its_data_set(name: str) -> None:
    configuration = compose_configuration(
        overrides=f"dataset={name} partition={name} ++dataset.folder=x"
    )
    domains = configuration.dataset.domains
    partition = build_group("partition", configuration)
    assert partition.num_clients(domains) == 8
    assert set(partition.train_per_client) == set(domains)


def test_default_partition_fits_the_embedded_digits(digits: DomainCollection) -> None:
    partition = build_group("partition", compose_configuration())
    shares = partition.split(digits, 0)
    assert [share.domain for share in shares] == [name for name in digits.names for _ in range(2)]


def _labelled(per_class: int, classes: int = 10, name: str = "pictures") -> DomainCollection:
    """Build one domain of numbered pictures, whose classes take turns."""
    numbered = _numbered(per_class * classes)
    train = ImageSet(numbered.images, torch.arange(len(numbered)) % classes)
    return DomainCollection((Domain(name, train, train.select(torch.arange(2))),), classes)


BY_LABEL = [
    Dirichlet(clients_per_domain=5, alpha=0.5, min_pictures=2),
    Pathological(clients_per_domain=10, classes_per_client=2),
    Shards(clients_per_domain=5, shards_per_client=2),
]


@pytest.mark.parametrize("partition", BY_LABEL, ids=lambda partition: type(partition).__name__)
def test_division_by_label_gives_each_picture_to_one_client_with_its_label(
    partition: Partition,
) -> None:
    collection = _labelled(20)
    shares = partition.split(collection, seed=4)
    held = [number for share in shares for number in _numbers(share)]
    assert sorted(held) == list(range(200))
    for share in shares:
        assert share.train.labels.tolist() == [number % 10 for number in _numbers(share)]


@pytest.mark.parametrize("partition", BY_LABEL, ids=lambda partition: type(partition).__name__)
def test_division_by_label_follows_the_seed_and_nothing_else(partition: Partition) -> None:
    collection, other = _labelled(20), _labelled(20, name="elsewhere")
    first, again, another = (partition.split(collection, seed) for seed in (4, 4, 5))
    assert [_numbers(share) for share in first] == [_numbers(share) for share in again]
    assert [_numbers(share) for share in first] != [_numbers(share) for share in another]
    both = DomainCollection((*collection.domains, *other.domains), 10)
    assert [_numbers(share) for share in partition.split(both, 4)[: len(first)]] == [
        _numbers(share) for share in first
    ]


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_pathological_clients_hold_exactly_so_many_classes(classes: int) -> None:
    partition = Pathological(clients_per_domain=20, classes_per_client=classes)
    shares = partition.split(_labelled(30), seed=0)
    assert [len(share.train.labels.unique()) for share in shares] == [classes] * 20
    assert all(client % 10 in share.train.labels for client, share in enumerate(shares))


def test_a_smaller_alpha_gives_clients_fewer_of_the_classes() -> None:
    held = {}
    for alpha in (0.1, 100.0):
        shares = Dirichlet(clients_per_domain=10, alpha=alpha, min_pictures=1).split(
            _labelled(100), seed=1
        )
        largest = [
            float(share.train.labels.bincount().max()) / len(share.train) for share in shares
        ]
        held[alpha] = sum(largest) / len(largest)
    assert held[0.1] > 0.4 > 0.2 > held[100.0]


@pytest.mark.parametrize("alpha", [1e15, 1e307, 1.7e308, math.inf])
@pytest.mark.parametrize("clients", [3, 7])
def test_an_alpha_beyond_all_measure_divides_each_class_equally(alpha: float, clients: int) -> None:
    shares = Dirichlet(clients_per_domain=clients, alpha=alpha, min_pictures=1).split(
        _labelled(42), seed=5
    )
    for share in shares:
        held = share.train.labels.bincount(minlength=10)
        assert (held - 42 // clients).abs().max() <= 1


@pytest.mark.parametrize("alpha", [1e-12, 1e-200, 5e-324])
def test_an_alpha_next_to_nothing_gives_each_class_to_one_client(alpha: float) -> None:
    shares = Dirichlet(clients_per_domain=4, alpha=alpha, min_pictures=1).split(
        _labelled(30), seed=3
    )
    held = torch.stack([share.train.labels.bincount(minlength=10) for share in shares])
    assert (held.max(dim=0).values >= 29).all()


def test_a_dirichlet_division_of_too_few_pictures_says_what_to_change() -> None:
    partition = Dirichlet(clients_per_domain=50, alpha=0.01, min_pictures=11)
    with pytest.raises(ValueError, match=r"partition\.min_pictures=11.*fewer clients"):
        partition.split(_labelled(50), seed=0)


def test_where_no_draw_gives_every_client_enough_the_largest_top_up_the_smallest() -> None:
    partition = Dirichlet(clients_per_domain=50, alpha=0.01, min_pictures=9)
    shares = partition.split(_labelled(50), seed=0)
    sizes = [len(share.train) for share in shares]
    assert min(sizes) == 9
    assert sum(sizes) == 500
    numbers = [number for share in shares for number in _numbers(share)]
    assert len(set(numbers)) == 500
    again = partition.split(_labelled(50), seed=0)
    assert [_numbers(share) for share in again] == [_numbers(share) for share in shares]


@pytest.mark.parametrize("classes", [1, 2])
def test_a_pathological_division_leaves_no_class_to_nobody(classes: int) -> None:
    partition = Pathological(clients_per_domain=4, classes_per_client=classes)
    with pytest.raises(ValueError, match=r"of the 10 classes.*no client's"):
        partition.split(_labelled(50), seed=0)


@settings(deadline=None, max_examples=20)
@given(share=st.floats(0.01, 0.9), clients=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_clients_keep_their_part_for_testing_and_never_train_on_it(
    share: float, clients: int, seed: int
) -> None:
    shares = ByDomain(clients_per_domain=clients, test_share=share).split(_collection(60), seed)
    numbers = []
    for one in shares:
        assert one.test is not None
        held = len(one.train) + len(one.test)
        assert len(one.test) == max(1, round(share * held))
        numbers += _numbers(one) + _numbers(ClientShare(0, "", one.test))
    assert sorted(numbers) == list(range(60))


def test_a_kept_part_leaves_the_division_among_the_clients_as_it_is() -> None:
    whole, parted = (
        ByDomain(clients_per_domain=3, test_share=share).split(_collection(50), 2)
        for share in (0.0, 0.3)
    )
    for before, after in zip(whole, parted, strict=True):
        assert before.test is None
        assert after.test is not None
        held = _numbers(after) + _numbers(ClientShare(0, "", after.test))
        assert sorted(held) == sorted(_numbers(before))


def test_a_client_with_one_picture_cannot_keep_one() -> None:
    with pytest.raises(ValueError, match=r"client 0 \(domain 'domain 0'\) gets 1 pictures"):
        ByDomain(clients_per_domain=2, test_share=0.2).split(_collection(2), 0)


@pytest.mark.parametrize(
    ("partition", "options", "message"),
    [
        (Dirichlet, {"alpha": 0}, "alpha must be above 0"),
        (Dirichlet, {"alpha": -2.5}, "alpha must be above 0, got -2.5"),
        (Dirichlet, {"alpha": math.nan}, "alpha must be above 0, got nan"),
        (Dirichlet, {"alpha": -math.inf}, "alpha must be above 0"),
        (Dirichlet, {"min_pictures": 0}, "min_pictures must be at least 1"),
        (Pathological, {"classes_per_client": 0}, "classes_per_client must be at least 1"),
        (Shards, {"shards_per_client": 0}, "shards_per_client must be at least 1"),
        (ByDomain, {"test_share": 1.0}, "at least 0 and below 1, got 1.0"),
        (ByDomain, {"test_share": -0.1}, "at least 0 and below 1, got -0.1"),
    ],
)
def test_impossible_divisions_are_refused(
    partition: type[Partition], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        partition(clients_per_domain=2, **options)


def test_more_classes_a_client_than_there_are_is_an_error_that_names_the_domain() -> None:
    with pytest.raises(ValueError, match="domain 'pictures' cannot be divided among 3 clients"):
        Pathological(clients_per_domain=3, classes_per_client=11).split(_labelled(5), 0)


@pytest.mark.parametrize("name", ["iid", "dirichlet", "pat1", "pat2", "shards"])
def test_configured_divisions_have_twenty_clients_of_one_domain(name: str) -> None:
    configuration = compose_configuration(overrides=f"partition={name}")
    partition = build_group("partition", configuration)
    shares = partition.split(_labelled(100), seed=0)
    assert configuration.partition.name == name
    assert partition.num_clients(["pictures"]) == len(shares) == 20
    assert all(share.test is not None for share in shares)
