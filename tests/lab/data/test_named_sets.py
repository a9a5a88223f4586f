"""Named data sets: from archives, folders and fonts, whatever of them is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from fedpw_flwr.lab.data import named_sets
from fedpw_flwr.lab.data.archives import archives
from fedpw_flwr.lab.data.cache import cache_folder
from fedpw_flwr.lab.data.images import IMAGENET_MEAN, IMAGENET_STD, DomainCollection
from fedpw_flwr.lab.data.named_sets import OFFICE_CALTECH, named_set
from fedpw_flwr.lab.data.rendered_digits import TEST_FONTS, RenderedDigits, rendered_digits


def _write_archives(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    pictures, labels = load_digits(return_X_y=True)
    pictures = (pictures.reshape(-1, 8, 8) * 15).astype(np.uint8)
    for place, name in enumerate(names):
        own = slice(100 * place, 100 * place + 60)
        rest = slice(100 * place + 60, 100 * place + 100)
        np.savez_compressed(
            folder / f"{name}.npz",
            x_train=pictures[own],
            y_train=labels[own],
            x_test=pictures[rest],
            y_test=labels[rest],
        )
    return folder


def _write_pictures(folder: Path, classes: Sequence[str], count: int = 5) -> None:
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture = Image.new("RGB", (9, 7), (20 * place, number, 0))
            picture.save(folder / name / f"{number}.png")


def _same_pictures(first: DomainCollection, second: DomainCollection) -> bool:
    return first.names == second.names and all(
        torch.equal(getattr(mine, split).images, getattr(other, split).images)
        and torch.equal(getattr(mine, split).labels, getattr(other, split).labels)
        for mine, other in zip(first.domains, second.domains, strict=True)
        for split in ("train", "test")
    )


def test_a_folder_of_archives_holds_all_domains(tmp_path: Path) -> None:
    folder = _write_archives(tmp_path / "archives", "mnist", "own", "usps")
    names = ["usps", "mnist", "own"]
    found = named_set(names, tmp_path, archives_folder=folder, image_size=12)
    assert _same_pictures(found, archives(folder, names, image_size=12))


def test_syn_is_drawn_where_the_archives_have_none(tmp_path: Path) -> None:
    folder = _write_archives(tmp_path / "archives", "mnist")
    options: dict[str, Any] = {"archives_folder": folder, "syn_train": 30, "syn_test": 20}
    drawn = named_set(["mnist", "syn"], tmp_path, **options).domains[1]
    assert (len(drawn.train), len(drawn.test)) == (30, 20)
    assert drawn.train.labels.bincount().tolist() == [3] * 10
    _write_archives(folder, "syn")
    read = named_set(["syn"], tmp_path, **options)
    assert _same_pictures(read, archives(folder, ["syn"]))


def test_syn_is_not_drawn_where_its_own_pictures_are_asked_for(tmp_path: Path) -> None:
    folder = _write_archives(tmp_path / "archives", "mnist")
    with pytest.raises(FileNotFoundError, match=r"no syn\.npz .*dataset\.archives_folder"):
        named_set(["syn"], tmp_path, archives_folder=folder, syn="folder")


def test_syn_is_read_from_its_folder(tmp_path: Path) -> None:
    digits = [str(digit) for digit in range(10)]
    _write_pictures(tmp_path / "syn" / "train", digits, count=2)
    _write_pictures(tmp_path / "syn" / "test", digits, count=1)
    (syn,) = named_set(["syn"], tmp_path, syn="folder", image_size=8).domains
    assert syn.train.labels.tolist() == [digit for digit in range(10) for _ in range(2)]
    assert syn.test.images[:, 0, 4, 4].tolist() == [20 * digit for digit in range(10)]


def test_drawn_digits_are_the_same_every_time_and_test_other_fonts() -> None:
    train, test = RenderedDigits(20, 10).read(image_size=16, channels=3, num_classes=10)
    again, _ = RenderedDigits(20, 30).read(image_size=16, channels=3, num_classes=10)
    assert torch.equal(train.images, again.images)
    assert len(test) == 10
    assert {file.stem for file in RenderedDigits(1, 1).files()} >= set(TEST_FONTS)
    assert not torch.equal(
        test.images, rendered_digits(10, TEST_FONTS, image_size=16, seed=0).images
    )


def test_office_caltech_is_four_folders_of_the_same_classes(tmp_path: Path) -> None:
    classes = [f"class {place}" for place in range(10)]
    for name in OFFICE_CALTECH:
        _write_pictures(tmp_path / "office_caltech" / name, classes)
    found = named_set(OFFICE_CALTECH, tmp_path, image_size=8)
    assert found.names == OFFICE_CALTECH
    for domain in found.domains:
        assert domain.train.labels.bincount().tolist() == [4] * 10
        assert domain.test.labels.bincount().tolist() == [1] * 10


def test_domains_whose_classes_have_other_names_are_refused(tmp_path: Path) -> None:
    _write_pictures(tmp_path / "office_caltech" / "amazon", ["bike", "mug"])
    _write_pictures(tmp_path / "office_caltech" / "dslr", ["bike", "cup"])
    with pytest.raises(
        ValueError, match=r"same classes.*amazon has bike, mug; .*dslr has bike, cup"
    ):
        named_set(["amazon", "dslr"], tmp_path, num_classes=2)


def test_all_that_is_missing_is_told_at_once_with_what_to_get(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        named_set(["mnist", "amazon", "syn", "dslr"], tmp_path, syn="folder")
    told = str(caught.value)
    assert "mnist is not complete" in told
    assert "dataset.download=true" in told
    for folder in ("office_caltech/amazon", "office_caltech/dslr", "syn"):
        assert f"no pictures in {tmp_path / folder}" in told
    assert told.count("Office-Caltech-10") == told.count("Synthetic Digits") == 1


def test_nothing_is_drawn_while_something_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mnist is not complete") as caught:
        named_set(["syn", "mnist"], tmp_path, syn_train=10**9)
    assert "syn" not in str(caught.value).split("\n")[0]


def test_unknown_domain_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has \['emnist'\], allowed are \['mnist', 'usps', 'svhn'"
    ):
        named_set(["mnist", "emnist"], tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"syn": "drawn"}, r"dataset\.syn must be rendered or folder, got 'drawn'"),
        ({"syn_train": 0}, r"dataset\.syn_train must be at least 1 picture, got 0"),
        ({"channels": 1}, "3 channels and 10 classes"),
        ({"num_classes": 5}, "3 channels and 10 classes"),
        ({"max_test_per_domain": 0}, "at least 1, got 0"),
        ({"mean": [0.5]}, "mean and std need one number a channel"),
        ({"domains": ["syn", "syn"]}, "names must differ"),
    ],
)
def test_impossible_options_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    small: dict[str, Any] = {"domains": ["syn"], "syn_train": 10, "syn_test": 5}
    with pytest.raises(ValueError, match=message):
        named_set(folder=tmp_path, **{**small, **options})


def test_second_call_reads_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _write_archives(tmp_path / "archives", "mnist")
    first = named_set(["mnist"], tmp_path, archives_folder=folder)

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(named_sets.Archive, "read", fail)
    again = named_set(["mnist"], tmp_path, archives_folder=folder)
    assert _same_pictures(first, again)
    with pytest.raises(AssertionError, match="read again"):
        named_set(["mnist"], tmp_path, archives_folder=folder, image_size=16)


def test_a_changed_archive_is_read_again(tmp_path: Path) -> None:
    folder = _write_archives(tmp_path / "archives", "mnist", "usps")
    first = named_set(["mnist"], tmp_path, archives_folder=folder)
    (folder / "usps.npz").rename(folder / "mnist.npz")
    second = named_set(["mnist"], tmp_path, archives_folder=folder)
    assert not _same_pictures(first, second)


def test_fewer_test_pictures_and_another_normalisation_come_from_the_same_file(
    tmp_path: Path,
) -> None:
    folder = _write_archives(tmp_path / "archives", "mnist")
    whole = named_set(["mnist"], tmp_path, archives_folder=folder)
    assert (whole.mean, whole.std) == (IMAGENET_MEAN, IMAGENET_STD)
    few = named_set(
        ["mnist"],
        tmp_path,
        archives_folder=folder,
        max_test_per_domain=7,
        mean=[0.1, 0.2, 0.3],
        std=[1.0, 2.0, 3.0],
    )
    assert len(few.domains[0].test) == 7
    assert (few.mean, few.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert len(list(cache_folder().iterdir())) == 1
