"""Prepared pictures: what is loaded is what was saved, mapped from the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedpw_flwr.lab.data.images import Domain, DomainCollection, ImageSet
from fedpw_flwr.lab.data.partition import ByDomain, ClientShare
from fedpw_flwr.lab.data.prepared import load_prepared, save_prepared

NOTES = {"run": "a"}


@pytest.fixture
def collection() -> DomainCollection:
    """Two domains of 20 training and 5 test pictures."""
    return DomainCollection(
        (_domain("a", 0), _domain("b", 1)), num_classes=10, mean=(0.1, 0.2, 0.3), std=(1, 2, 3)
    )


@pytest.fixture
def shares(collection: DomainCollection) -> list[ClientShare]:
    """Two clients a domain, of 7 pictures each."""
    return ByDomain(clients_per_domain=2, train_per_client=7).split(collection, seed=3)


def test_shares_and_test_pictures_come_back_as_they_were(
    collection: DomainCollection, shares: list[ClientShare], tmp_path: Path
) -> None:
    file = tmp_path / "prepared"
    save_prepared(file, collection, shares, NOTES)
    loaded = load_prepared(file, NOTES)
    assert loaded is not None
    data, loaded_shares, notes = loaded
    assert notes == NOTES
    assert (data.names, data.num_classes) == (collection.names, collection.num_classes)
    assert (data.mean, data.std) == (collection.mean, collection.std)
    for domain, saved in zip(data.domains, collection.domains, strict=True):
        _assert_same(domain.test, saved.test)
    for share, saved_share in zip(loaded_shares, shares, strict=True):
        assert (share.client_id, share.domain) == (saved_share.client_id, saved_share.domain)
        _assert_same(share.train, saved_share.train)


def test_a_share_is_a_view_of_its_domains_pictures_and_not_a_copy(
    collection: DomainCollection, shares: list[ClientShare], tmp_path: Path
) -> None:
    file = tmp_path / "prepared"
    save_prepared(file, collection, shares, NOTES)
    loaded = load_prepared(file, NOTES)
    assert loaded is not None
    data, loaded_shares, _ = loaded
    first, second = loaded_shares[:2]
    held = data.domains[0].train
    assert len(held) == 14
    assert first.train.images.data_ptr() == held.images.data_ptr()
    assert second.train.images.data_ptr() == held.images[7:].data_ptr()


def test_loaded_pictures_outlive_the_file(
    collection: DomainCollection, shares: list[ClientShare], tmp_path: Path
) -> None:
    file = tmp_path / "prepared"
    save_prepared(file, collection, shares, NOTES)
    loaded = load_prepared(file, NOTES)
    file.unlink()
    assert loaded is not None
    _assert_same(loaded[1][3].train, shares[3].train)


def test_changing_loaded_pictures_leaves_the_file_as_it_is(
    collection: DomainCollection, shares: list[ClientShare], tmp_path: Path
) -> None:
    file = tmp_path / "prepared"
    save_prepared(file, collection, shares, NOTES)
    before = file.read_bytes()
    loaded = load_prepared(file, NOTES)
    assert loaded is not None
    loaded[1][0].train.images.zero_()
    assert file.read_bytes() == before


def test_a_domain_without_clients_keeps_its_training_pictures(
    collection: DomainCollection, shares: list[ClientShare], tmp_path: Path
) -> None:
    file = tmp_path / "prepared"
    save_prepared(file, collection, shares[:2], NOTES)
    loaded = load_prepared(file, NOTES)
    assert loaded is not None
    _assert_same(loaded[0].domains[1].train, collection.domains[1].train)
    assert [share.domain for share in loaded[1]] == ["a", "a"]


def test_clients_in_another_order_than_the_domains_keep_their_pictures(
    collection: DomainCollection, shares: list[ClientShare], tmp_path: Path
) -> None:
    mixed = [
        ClientShare(client, shares[old].domain, shares[old].train)
        for client, old in enumerate((3, 0, 2, 1))
    ]
    file = tmp_path / "prepared"
    save_prepared(file, collection, mixed, NOTES)
    loaded = load_prepared(file, NOTES)
    assert loaded is not None
    for share, saved in zip(loaded[1], mixed, strict=True):
        assert (share.client_id, share.domain) == (saved.client_id, saved.domain)
        _assert_same(share.train, saved.train)


def test_a_file_of_another_run_is_not_taken(
    collection: DomainCollection, shares: list[ClientShare], tmp_path: Path
) -> None:
    file = tmp_path / "prepared"
    save_prepared(file, collection, shares, NOTES)
    assert load_prepared(file, {"run": "b"}) is None
    assert load_prepared(file, {**NOTES, "more": "c"}) is None
    assert load_prepared(tmp_path / "missing", NOTES) is None


def test_pictures_of_an_unknown_domain_are_refused(
    collection: DomainCollection, shares: list[ClientShare], tmp_path: Path
) -> None:
    stranger = ClientShare(0, "c", shares[0].train)
    with pytest.raises(ValueError, match=r"domains of no data set"):
        save_prepared(tmp_path / "prepared", collection, [stranger], NOTES)
    assert list(tmp_path.iterdir()) == []


def _domain(name: str, seed: int) -> Domain:
    generator = torch.Generator().manual_seed(seed)

    def pictures(count: int) -> ImageSet:
        images = torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
        return ImageSet(images, torch.randint(0, 10, (count,), generator=generator))

    return Domain(name, pictures(20), pictures(5))


def _assert_same(first: ImageSet, second: ImageSet) -> None:
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


def test_pictures_that_clients_keep_for_testing_come_back_as_they_were(
    collection: DomainCollection, tmp_path: Path
) -> None:
    shares = ByDomain(clients_per_domain=2, test_share=0.3).split(collection, seed=3)
    save_prepared(tmp_path / "prepared", collection, shares, NOTES)
    loaded = load_prepared(tmp_path / "prepared", NOTES)
    assert loaded is not None
    for share, saved in zip(loaded[1], shares, strict=True):
        assert share.test is not None
        assert saved.test is not None
        _assert_same(share.test, saved.test)
        _assert_same(share.train, saved.train)
