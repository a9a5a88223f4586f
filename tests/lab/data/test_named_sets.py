"""Named data sets: from archives, folders and fonts, whatever of them is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.images import are_same, write_archives

from fedpw_flwr.lab.data.archives import archives
from fedpw_flwr.lab.data.cache import cache_folder
from fedpw_flwr.lab.data.examples import IMAGENET_MEAN, IMAGENET_STD, DomainCollection
from fedpw_flwr.lab.data.locations import OFFICE_CALTECH
from fedpw_flwr.lab.data.named_sets import named_set


def _write_images(folder: Path, classes: Sequence[str], count: int = 5) -> None:
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (9, 7), (20 * label, number, 0))
            image.save(folder / name / f"{number}.png")


def test_a_folder_of_archives_holds_all_domains_and_syn_is_drawn_where_it_does_not(
    tmp_path: Path,
) -> None:
    folder = write_archives(tmp_path / "archives", "mnist", "own", "usps")
    names = ["usps", "mnist", "own"]
    options: dict[str, Any] = {"archives_folder": folder, "syn_train": 30, "syn_test": 20}
    *found, drawn = named_set([*names, "syn"], tmp_path, **options).domains
    assert are_same(DomainCollection(tuple(found), 10), archives(folder, names))
    assert drawn.train.labels.bincount().tolist() == [3] * 10
    assert drawn.test.labels.bincount().tolist() == [2] * 10
    write_archives(folder, "syn")
    assert are_same(named_set(["syn"], tmp_path, **options), archives(folder, ["syn"]))


def test_syn_is_read_from_its_folder(tmp_path: Path) -> None:
    digits = [str(digit) for digit in range(10)]
    _write_images(tmp_path / "syn" / "train", digits, count=2)
    _write_images(tmp_path / "syn" / "test", digits, count=1)
    (syn,) = named_set(["syn"], tmp_path, syn="folder", image_size=8).domains
    assert syn.train.labels.tolist() == [digit for digit in range(10) for _ in range(2)]
    assert syn.test.features[:, 0, 4, 4].tolist() == [20 * digit for digit in range(10)]


def test_office_caltech_is_four_folders_of_the_same_classes(tmp_path: Path) -> None:
    classes = [f"class {label}" for label in range(10)]
    for name in OFFICE_CALTECH:
        _write_images(tmp_path / "office_caltech" / name, classes)
    found = named_set(OFFICE_CALTECH, tmp_path, image_size=8)
    assert found.names == OFFICE_CALTECH
    for domain in found.domains:
        assert domain.train.labels.bincount().tolist() == [4] * 10
        assert domain.test.labels.bincount().tolist() == [1] * 10
    (tmp_path / "office_caltech" / "dslr" / classes[0]).rename(tmp_path / "office_caltech/dslr/cup")
    with pytest.raises(ValueError, match=r"same classes.*amazon has class 0, .*dslr has class 1, "):
        named_set(OFFICE_CALTECH, tmp_path, image_size=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 1}, "3 channels and 10 classes"),
        ({"num_classes": 5}, "3 channels and 10 classes"),
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


def test_fewer_test_images_and_another_normalisation_come_from_the_same_file(
    tmp_path: Path,
) -> None:
    folder = write_archives(tmp_path / "archives", "mnist")
    whole = named_set(["mnist"], tmp_path, archives_folder=folder)
    assert (whole.mean, whole.std) == (IMAGENET_MEAN, IMAGENET_STD)
    normalisation = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    few = named_set(
        ["mnist"], tmp_path, archives_folder=folder, max_test_per_domain=7, **normalisation
    )
    assert len(few.domains[0].test) == 7
    assert (few.mean, few.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert len(list(cache_folder().iterdir())) == 1
