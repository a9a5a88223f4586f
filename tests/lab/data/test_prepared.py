"""Prepared images: what is loaded is what was saved, mapped from the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.images import are_same, random_domain

from fedpw_flwr.lab.data.examples import DomainCollection
from fedpw_flwr.lab.data.prepared import load_prepared, save_prepared

NOTES = {"key": "a"}
COLLECTION = DomainCollection(
    (random_domain("a", 0), random_domain("b", 1)), 10, mean=(0.1, 0.2, 0.3), std=(1, 2, 3)
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


def _saved_and_loaded(file: Path) -> DomainCollection:
    save_prepared(file, COLLECTION, NOTES)
    assert list(file.parent.iterdir()) == [file]
    loaded = load_prepared(file, NOTES)
    assert loaded is not None
    return loaded


def test_images_come_back_as_they_were(file: Path) -> None:
    data = _saved_and_loaded(file)
    assert (data.names, data.num_classes) == (COLLECTION.names, COLLECTION.num_classes)
    assert (data.mean, data.std) == (COLLECTION.mean, COLLECTION.std)
    for domain, saved in zip(data.domains, COLLECTION.domains, strict=True):
        assert are_same(domain.train, saved.train)
        assert are_same(domain.test, saved.test)


def test_loaded_images_outlive_the_file_and_do_not_change_it(file: Path) -> None:
    first, second = _saved_and_loaded(file).domains
    before = file.read_bytes()
    first.train.features.zero_()
    assert file.read_bytes() == before
    file.unlink()
    assert are_same(second.train, COLLECTION.domains[1].train)


def test_a_file_of_other_images_is_not_taken(file: Path) -> None:
    assert load_prepared(file, NOTES) is None
    save_prepared(file, COLLECTION, NOTES)
    assert load_prepared(file, {"key": "b"}) is None
    assert load_prepared(file, {**NOTES, "more": "c"}) is None
