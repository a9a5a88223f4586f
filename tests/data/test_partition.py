from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedpw_flwr.data.images import Domain, DomainCollection, ImageSet
from fedpw_flwr.data.partition import ByDomain, ClientShare

CONF = Path(__file__).parents[2] / "conf"


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
    partition, collection = ByDomain(2, train_per_client=10), _collection(100)
    first, again, other = (
        [_numbers(share) for share in partition.split(collection, seed)] for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_division_of_a_domain_does_not_depend_on_the_others() -> None:
    partition = ByDomain(2, train_per_client=5)
    both, alone = partition.split(_collection(30, 40), 0), partition.split(_collection(30), 0)
    assert [_numbers(share) for share in both[:2]] == [_numbers(share) for share in alone]


def test_clients_hold_the_number_of_pictures_asked_for() -> None:
    counts = {"domain 0": 7, "domain 1": 12}
    shares = ByDomain(2, train_per_client=counts).split(_collection(30, 30), 0)
    assert [len(share.train) for share in shares] == [7, 7, 12, 12]
    shares = ByDomain(3, share=0.1).split(_collection(55), 0)
    assert [len(share.train) for share in shares] == [5, 5, 5]


def test_more_pictures_than_a_domain_has_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="'domain 1' has 9 training pictures, its 2 clients would"):
        ByDomain(2, train_per_client=5).split(_collection(10, 9), 0)


def test_client_without_any_picture_is_an_error() -> None:
    with pytest.raises(ValueError, match="would need 0"):
        ByDomain(2, share=0.01).split(_collection(50), 0)


def test_domain_without_a_number_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="no number for domain 'domain 1'"):
        ByDomain(1, train_per_client={"domain 0": 3}).split(_collection(5, 5), 0)


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


@pytest.mark.parametrize("name", ["digits", "four_domains"])
def test_configured_partition_covers_the_domains_of_its_data_set(name: str) -> None:
    domains = OmegaConf.load(CONF / "dataset" / f"{name}.yaml").domains
    partition = instantiate(OmegaConf.load(CONF / "partition" / f"{name}.yaml"))
    assert partition.num_clients(domains) == 8
    assert set(partition.train_per_client) == set(domains)


def test_default_partition_fits_the_embedded_digits(digits: DomainCollection) -> None:
    partition = instantiate(OmegaConf.load(CONF / "partition" / "digits.yaml"))
    shares = partition.split(digits, 0)
    assert [share.domain for share in shares] == [name for name in digits.names for _ in range(2)]
