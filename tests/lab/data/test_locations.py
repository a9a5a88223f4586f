"""What is missed before anything is read, by the light check and by the reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedpw_flwr.lab.data.archives import archives
from fedpw_flwr.lab.data.locations import (
    OFFICE_CALTECH,
    TORCHVISION_FILES,
    check_archives,
    check_named_set,
)
from fedpw_flwr.lab.data.named_sets import named_set

each_named_set = pytest.mark.parametrize("check", [check_named_set, named_set])


def _file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.mark.parametrize("name", TORCHVISION_FILES)
def test_a_set_that_is_not_there_is_missed_unless_it_is_to_be_fetched(
    tmp_path: Path, name: str
) -> None:
    for check in (check_named_set, named_set):
        with pytest.raises(FileNotFoundError, match=rf"{name} is not in .*dataset\.download=true"):
            check([name, "syn"], tmp_path)
    check_named_set([name, "syn"], tmp_path, download=True)
    _file(tmp_path / TORCHVISION_FILES[name].replace("*", "x"))
    check_named_set([name, "syn"], tmp_path)


@each_named_set
def test_all_that_is_missing_is_told_at_once_with_what_to_get(tmp_path: Path, check: Any) -> None:
    (tmp_path / "office_caltech" / "dslr" / "mug").mkdir(parents=True)
    with pytest.raises(FileNotFoundError) as missed:
        check(["mnist", *OFFICE_CALTECH, "syn"], tmp_path, syn="folder")
    told = str(missed.value)
    assert "mnist is not in" in told
    assert "dataset.download=true" in told
    for folder in ("office_caltech/amazon", "office_caltech/webcam", "syn"):
        assert f"no images in {tmp_path / folder}\n" in told
    assert "office_caltech/dslr\n" not in told
    assert told.count("Office-Caltech-10 (") == told.count("Synthetic Digits") == 1
    assert "dataset.syn=rendered" in told


@pytest.mark.parametrize("check", [check_archives, lambda names, folder: archives(folder, names)])
def test_a_missing_archive_is_named_beside_those_which_are_there(
    tmp_path: Path, check: Any
) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: set dataset\.folder"):
        check(["a"], tmp_path / "nowhere")
    _file(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match=r"no b\.npz in .*found: a\)"):
        check(["a", "b"], tmp_path)


def test_an_archive_is_needed_of_every_domain_but_one_that_is_drawn(tmp_path: Path) -> None:
    _file(tmp_path / "a.npz")
    check_named_set(["a", "syn"], "nowhere", archives_folder=tmp_path)
    for check in (check_named_set, named_set):
        with pytest.raises(FileNotFoundError, match=r"no syn\.npz .*dataset\.archives_folder"):
            check(["a", "syn"], "nowhere", archives_folder=tmp_path, syn="folder")


@each_named_set
def test_names_that_nobody_knows_need_archives(tmp_path: Path, check: Any) -> None:
    with pytest.raises(ValueError, match=r"\['kmnist'\], allowed are .*'cifar100'"):
        check(["mnist", "kmnist"], tmp_path, download=True)
