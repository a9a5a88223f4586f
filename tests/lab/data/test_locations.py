"""Claims about what is missed before anything is read."""

from pathlib import Path

import pytest

from fedpw_flwr.lab.data.locations import (
    OFFICE_CALTECH,
    TORCHVISION_FILES,
    check_archives,
    check_named_set,
)


def _file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.mark.parametrize("name", TORCHVISION_FILES)
def test_a_set_that_is_not_there_is_missed_unless_it_is_to_be_fetched(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{name} is not in .*dataset\.download=true"):
        check_named_set([name, "syn"], tmp_path)
    check_named_set([name, "syn"], tmp_path, download=True)
    _file(tmp_path / TORCHVISION_FILES[name].replace("*", "x"))
    check_named_set([name, "syn"], tmp_path)


def test_folders_of_pictures_are_missed_with_where_they_come_from(tmp_path: Path) -> None:
    (tmp_path / "office_caltech" / "dslr").mkdir(parents=True)
    with pytest.raises(FileNotFoundError) as missed:
        check_named_set([*OFFICE_CALTECH, "syn"], tmp_path, syn="folder")
    said = str(missed.value)
    assert "office_caltech/webcam" in said
    assert "office_caltech/dslr\n" not in said
    assert said.count("Office-Caltech-10 (") == 1
    assert "dataset.syn=rendered" in said


def test_an_archive_is_needed_of_every_domain_but_one_that_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: set dataset\.folder"):
        check_archives(["a"], tmp_path / "nowhere")
    _file(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match=r"no b\.npz in .*found: a\)"):
        check_archives(["a", "b"], tmp_path)
    check_named_set(["a", "syn"], "nowhere", archives_folder=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no syn\.npz .*dataset\.archives_folder"):
        check_named_set(["a", "syn"], "nowhere", archives_folder=tmp_path, syn="folder")


def test_names_that_nobody_knows_need_archives(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['kmnist'\], allowed are .*'cifar100'"):
        check_named_set(["mnist", "kmnist"], tmp_path, download=True)
