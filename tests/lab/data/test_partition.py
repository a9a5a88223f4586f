"""Every image goes to one client, as the partition says and the seed decides."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpw_flwr.lab.config.configuration import compose_configuration
from fedpw_flwr.lab.data.examples import Domain, DomainCollection, ImageSet
from fedpw_flwr.lab.data.partition import ByDomain, Dirichlet, Partition, Pathological, Shards
from fedpw_flwr.lab.experiment import build_group


def _numbered(count: int, first: int = 0, classes: int = 10) -> ImageSet:
    """Images that show their number, and whose classes take turns."""
    numbers = torch.arange(first, first + count)
    images = (numbers[:, None] // torch.tensor([65536, 256, 1]) % 256).to(torch.uint8)
    return ImageSet(images[:, :, None, None], numbers % classes)


def _collection(*sizes: int) -> DomainCollection:
    return DomainCollection(
        tuple(
            Domain(f"domain {index}", _numbered(size, first=1000 * index), _numbered(1))
            for index, size in enumerate(sizes)
        ),
        num_classes=10,
    )


def _numbers(images: ImageSet | None) -> list[int]:
    assert images is not None
    channels = images.images[:, :, 0, 0].int()
    return (channels @ torch.tensor([65536, 256, 1], dtype=torch.int32)).tolist()


def _divided(partition: Partition, collection: DomainCollection, seed: int) -> list[list[int]]:
    return [_numbers(share.train) for share in partition.split(collection, seed)]


ALL = [
    ByDomain(clients_per_domain=5),
    Dirichlet(clients_per_domain=5, alpha=0.5, min_pictures=2),
    Pathological(clients_per_domain=10, classes_per_client=2),
    Shards(clients_per_domain=5, shards_per_client=2),
]
each_partition = pytest.mark.parametrize("partition", ALL, ids=lambda one: type(one).__name__)


@each_partition
def test_every_image_goes_to_one_client_of_its_domain_with_its_label(partition: Partition) -> None:
    collection = _collection(200, 300)
    shares = partition.split(collection, seed=4)
    assert [share.client_id for share in shares] == list(range(len(shares)))
    assert len(shares) == partition.num_clients(collection.names)
    for name, first, size in (("domain 0", 0, 200), ("domain 1", 1000, 300)):
        held = [share.train for share in shares if share.domain == name]
        numbers = [number for images in held for number in _numbers(images)]
        assert sorted(numbers) == list(range(first, first + size))
        labels = [label for images in held for label in images.labels.tolist()]
        assert labels == [number % 10 for number in numbers]


@each_partition
def test_a_division_follows_the_seed_and_not_the_other_domains(partition: Partition) -> None:
    alone, both = _collection(200), _collection(200, 300)
    first, again, another = (_divided(partition, alone, seed) for seed in (4, 4, 5))
    assert first == again != another
    assert _divided(partition, both, 4)[: len(first)] == first


def test_clients_hold_the_number_of_images_asked_for() -> None:
    counts = {"domain 0": 7, "domain 1": 12}
    shares = ByDomain(clients_per_domain=2, train_per_client=counts).split(_collection(30, 30), 0)
    assert [len(share.train) for share in shares] == [7, 7, 12, 12]
    shares = ByDomain(clients_per_domain=3, share=0.1).split(_collection(55), 0)
    assert [len(share.train) for share in shares] == [5, 5, 5]
    shares = ByDomain(clients_per_domain=3).split(_collection(50), 0)
    assert sorted(len(share.train) for share in shares) == [16, 17, 17]


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        (
            {"train_per_client": 5},
            (10, 9),
            "'domain 1' has 9 training examples, its 2 clients",
        ),
        ({"share": 0.01}, (50,), "would need 0"),
        (
            {"train_per_client": {"domain 0": 3}},
            (6, 6),
            r"numbers for \['domain 0'\], the data set",
        ),
        ({"test_share": 0.2}, (2,), r"client 0 \(domain 'domain 0'\) gets 1 examples"),
    ],
)
def test_a_division_that_its_domains_do_not_allow_is_refused(
    options: dict[str, float], sizes: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ByDomain(clients_per_domain=2, **options).split(_collection(*sizes), 0)


@pytest.mark.parametrize("overrides", ["", "experiment=four_domains dataset.folder=x"])
def test_configured_partition_covers_the_domains_of_its_data_set(overrides: str) -> None:
    configuration = compose_configuration(overrides=overrides)
    assert build_group("partition", configuration).num_clients(configuration.dataset.domains) == 8


@pytest.mark.parametrize("name", ["iid", "dirichlet", "pat1", "pat2", "shards"])
def test_configured_divisions_have_twenty_clients_of_one_domain(name: str) -> None:
    configuration = compose_configuration(overrides=f"partition={name}")
    partition = build_group("partition", configuration)
    shares = partition.split(_collection(1000), seed=0)
    assert configuration.partition.name == name
    assert partition.num_clients(["domain 0"]) == len(shares) == 20
    assert all(share.test is not None for share in shares)


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_pathological_clients_hold_exactly_so_many_classes(classes: int) -> None:
    partition = Pathological(clients_per_domain=20, classes_per_client=classes)
    shares = partition.split(_collection(300), seed=0)
    assert [len(share.train.labels.unique()) for share in shares] == [classes] * 20
    assert all(client % 10 in share.train.labels for client, share in enumerate(shares))


@pytest.mark.parametrize(
    ("clients", "classes", "message"),
    [
        (4, 1, r"of the 10 classes.*no client's"),
        (4, 2, r"of the 10 classes.*no client's"),
        (3, 11, "domain 'domain 0' cannot be divided among 3 clients"),
    ],
)
def test_a_pathological_division_leaves_no_class_to_nobody(
    clients: int, classes: int, message: str
) -> None:
    partition = Pathological(clients_per_domain=clients, classes_per_client=classes)
    with pytest.raises(ValueError, match=message):
        partition.split(_collection(500), seed=0)


def _dirichlet(size: int, seed: int, clients: int, alpha: float) -> torch.Tensor:
    """Count the images of each client and class."""
    partition = Dirichlet(clients_per_domain=clients, alpha=alpha, min_pictures=1)
    shares = partition.split(_collection(size), seed)
    return torch.stack([share.train.labels.bincount(minlength=10) for share in shares])


def test_a_smaller_alpha_gives_clients_fewer_of_the_classes() -> None:
    few, many = (
        float((counts.max(dim=1).values / counts.sum(dim=1)).mean())
        for counts in (_dirichlet(1000, 1, 10, alpha) for alpha in (0.1, 100.0))
    )
    assert few > 0.4 > 0.2 > many


@pytest.mark.parametrize("alpha", [1e15, 1e307, 1.7e308, math.inf])
@pytest.mark.parametrize("clients", [3, 7])
def test_an_alpha_beyond_all_measure_divides_each_class_equally(alpha: float, clients: int) -> None:
    assert (_dirichlet(420, 5, clients, alpha) - 42 // clients).abs().max() <= 1


@pytest.mark.parametrize("alpha", [1e-12, 1e-200, 5e-324])
def test_an_alpha_next_to_nothing_gives_each_class_to_one_client(alpha: float) -> None:
    assert (_dirichlet(300, 3, 4, alpha).max(dim=0).values >= 29).all()


def test_where_no_draw_gives_every_client_enough_the_largest_top_up_the_smallest() -> None:
    partition = Dirichlet(clients_per_domain=50, alpha=0.01, min_pictures=9)
    held = _divided(partition, _collection(500), seed=0)
    assert min(map(len, held)) == 9
    assert sorted(number for numbers in held for number in numbers) == list(range(500))
    assert _divided(partition, _collection(500), seed=0) == held


def test_a_dirichlet_division_of_too_few_images_says_what_to_change() -> None:
    partition = Dirichlet(clients_per_domain=50, alpha=0.01, min_pictures=11)
    with pytest.raises(ValueError, match=r"partition\.min_pictures=11.*fewer clients"):
        partition.split(_collection(500), seed=0)


@settings(deadline=None, max_examples=20)
@given(share=st.floats(0.01, 0.9), clients=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_clients_keep_their_part_for_testing_and_never_train_on_it(
    share: float, clients: int, seed: int
) -> None:
    whole, parted = (
        ByDomain(clients_per_domain=clients, test_share=kept).split(_collection(60), seed)
        for kept in (0.0, share)
    )
    for before, after in zip(whole, parted, strict=True):
        assert before.test is None
        kept = _numbers(after.test)
        assert len(kept) == max(1, round(share * len(before.train)))
        assert sorted(kept + _numbers(after.train)) == sorted(_numbers(before.train))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.6}, r"at most 1 / clients_per_domain = 0.5"),
        ({"share": 0.5, "train_per_client": 3}, "not both"),
        ({"test_share": -0.5}, "at least 0 and below 1"),
        ({"test_share": math.nan}, "at least 0 and below 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ByDomain(clients_per_domain=2, **options)
