"""Prepared images: what is loaded is what was saved, mapped from the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.images import are_same, random_domain, random_images

from fedpw_flwr.lab.data.images import DomainCollection
from fedpw_flwr.lab.data.partition import ClientShare
from fedpw_flwr.lab.data.prepared import load_prepared, save_prepared

NOTES = {"run": "a"}
COLLECTION = DomainCollection(
    (random_domain("a", 0), random_domain("b", 1)), 10, mean=(0.1, 0.2, 0.3), std=(1, 2, 3)
)
SHARES = [ClientShare(k, "aabb"[k], random_images(7, seed=10 + k)) for k in range(4)]
"""Two clients a domain."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


def _saved_and_loaded(
    file: Path, shares: Sequence[ClientShare]
) -> tuple[DomainCollection, tuple[ClientShare, ...], dict[str, str]]:
    save_prepared(file, COLLECTION, shares, NOTES)
    assert list(file.parent.iterdir()) == [file]
    loaded = load_prepared(file, NOTES)
    assert loaded is not None
    return loaded


@pytest.mark.parametrize(
    "shares",
    [
        SHARES,
        [replace(one, test=random_images(2, seed=20 + one.client_id)) for one in SHARES],
        [replace(SHARES[old], client_id=client) for client, old in enumerate((3, 0, 2, 1))],
    ],
    ids=["in the domains' order", "with images kept for testing", "in another order"],
)
def test_shares_and_test_images_come_back_as_they_were(
    shares: list[ClientShare], file: Path
) -> None:
    data, loaded, notes = _saved_and_loaded(file, shares)
    assert notes == NOTES
    assert (data.names, data.num_classes) == (COLLECTION.names, COLLECTION.num_classes)
    assert (data.mean, data.std) == (COLLECTION.mean, COLLECTION.std)
    for domain, saved in zip(data.domains, COLLECTION.domains, strict=True):
        assert are_same(domain.test, saved.test)
    for share, old in zip(loaded, shares, strict=True):
        assert (share.client_id, share.domain) == (old.client_id, old.domain)
        assert are_same(share.train, old.train)
        assert (share.test is None) == (old.test is None)
        assert share.test is None or old.test is None or are_same(share.test, old.test)


def test_a_share_is_a_view_of_its_domains_images_and_not_a_copy(file: Path) -> None:
    data, (first, second, *_), _ = _saved_and_loaded(file, SHARES)
    held = data.domains[0].train
    assert len(held) == 14
    assert first.train.images.data_ptr() == held.images.data_ptr()
    assert second.train.images.data_ptr() == held.images[7:].data_ptr()


def test_loaded_images_outlive_the_file_and_do_not_change_it(file: Path) -> None:
    _, loaded, _ = _saved_and_loaded(file, SHARES)
    before = file.read_bytes()
    loaded[0].train.images.zero_()
    assert file.read_bytes() == before
    file.unlink()
    assert are_same(loaded[3].train, SHARES[3].train)


def test_a_domain_without_clients_keeps_its_training_images(file: Path) -> None:
    data, loaded, _ = _saved_and_loaded(file, SHARES[:2])
    assert are_same(data.domains[1].train, COLLECTION.domains[1].train)
    assert [share.domain for share in loaded] == ["a", "a"]


def test_a_file_of_another_run_is_not_taken(file: Path) -> None:
    assert load_prepared(file, NOTES) is None
    save_prepared(file, COLLECTION, SHARES, NOTES)
    assert load_prepared(file, {"run": "b"}) is None
    assert load_prepared(file, {**NOTES, "more": "c"}) is None


def test_images_of_an_unknown_domain_are_refused(file: Path) -> None:
    with pytest.raises(ValueError):
        save_prepared(file, COLLECTION, [ClientShare(0, "c", SHARES[0].train)], NOTES)
    assert list(file.parent.iterdir()) == []
