from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fedpw_flwr.lab.data.archives import archives
from fedpw_flwr.lab.data.cache import cache_folder
from fedpw_flwr.lab.data.images import ImageSet


def _arrays(**changes: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
    pictures, labels = load_digits(return_X_y=True)
    pictures = (pictures.reshape(-1, 8, 8) * 15).astype(np.uint8)
    arrays: dict[str, NDArray[Any] | None] = {
        "x_train": pictures[:60],
        "y_train": labels[:60],
        "x_test": pictures[60:100],
        "y_test": labels[60:100],
    }
    arrays.update(changes)
    return {key: array for key, array in arrays.items() if array is not None}


def _write(folder: Path, name: str = "own", **changes: NDArray[Any] | None) -> Path:
    np.savez_compressed(folder / f"{name}.npz", **_arrays(**changes))
    return folder


def test_grey_and_colour_archives_become_domains_of_one_shape(tmp_path: Path) -> None:
    _write(tmp_path, "grey")
    colour = np.repeat(_arrays()["x_train"][..., None], 3, axis=3)
    _write(tmp_path, "colour", x_train=colour)
    collection = archives(tmp_path, ["grey", "colour"], image_size=12)
    assert collection.names == ("grey", "colour")
    assert collection.image_shape == (3, 12, 12)
    grey, coloured = collection.domains
    assert torch.equal(grey.train.images, coloured.train.images)
    assert grey.train.labels.dtype == torch.int64


def test_grey_archives_may_stay_grey(tmp_path: Path) -> None:
    collection = archives(_write(tmp_path), ["own"], image_size=8, channels=1)
    assert collection.in_channels == len(collection.mean) == 1
    assert np.array_equal(collection.domains[0].train.images[:, 0].numpy(), _arrays()["x_train"])


def test_limit_on_test_pictures_keeps_the_same_ones_every_time(tmp_path: Path) -> None:
    _write(tmp_path)
    first, second = (
        archives(tmp_path, ["own"], max_test_per_domain=10).domains[0].test for _ in range(2)
    )
    assert len(first) == 10
    assert torch.equal(first.images, second.images)


def test_limited_test_pictures_are_drawn_from_all_classes_of_a_sorted_archive(
    tmp_path: Path,
) -> None:
    arrays = _arrays()
    order = arrays["y_train"].argsort(kind="stable")
    _write(tmp_path, x_test=arrays["x_train"][order], y_test=arrays["y_train"][order])
    (domain,) = archives(tmp_path, ["own"], max_test_per_domain=30).domains
    assert domain.test.labels.unique().numel() >= 8


def test_an_archive_is_decoded_once_a_machine_until_it_changes(tmp_path: Path) -> None:
    _write(tmp_path)
    first, again = (_train(tmp_path) for _ in range(2))
    assert len(list(cache_folder().iterdir())) == 1
    assert torch.equal(first.images, again.images)
    pictures = _arrays()["x_train"]
    _write(tmp_path, "own", x_train=255 - pictures)
    assert torch.equal(_train(tmp_path).images, 255 - first.images)


def _train(folder: Path) -> ImageSet:
    return archives(folder, ["own"], image_size=8).domains[0].train


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: set dataset.folder"):
        archives(tmp_path / "nowhere", ["own"])


def test_missing_archive_is_named_beside_those_which_are_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no other.npz .*found: own"):
        archives(_write(tmp_path), ["own", "other"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"own.npz has no y_test, only \['x_test', 'x_train', 'y_train'\]"),
        ({"x_train": np.zeros((60, 8, 8))}, "x_train in .* is float64, not uint8"),
        ({"y_train": np.zeros(60)}, "y_train in .* is float64, not an integer type"),
        ({"y_train": np.zeros(59, int)}, r"y_train in .* has shape \(59,\) for 60 pictures"),
        ({"y_train": np.full(60, 10)}, "labels from 10 to 10, but dataset.num_classes=10"),
        ({"y_test": np.full(40, -1)}, "y_test in .* has labels from -1"),
        ({"x_train": np.zeros((60, 64), np.uint8)}, r"x_train in .*got \(60, 64\)"),
        (
            {"x_test": np.zeros((0, 8, 8), np.uint8), "y_test": np.zeros(0, int)},
            "x_test in .* is empty",
        ),
    ],
)
def test_wrong_array_is_named_with_what_is_wrong(
    tmp_path: Path, changes: dict[str, NDArray[Any] | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        archives(_write(tmp_path, **changes), ["own"])


def test_archive_with_python_objects_is_not_unpickled(tmp_path: Path) -> None:
    _write(tmp_path, y_train=np.array([{"a": 1}] * 60, dtype=object))
    with pytest.raises(ValueError, match="holds Python objects"):
        archives(tmp_path, ["own"])


def test_truncated_archive_is_called_so(tmp_path: Path) -> None:
    file = _write(tmp_path) / "own.npz"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cut short"):
        archives(tmp_path, ["own"])


def test_archive_with_damaged_bytes_is_called_so(tmp_path: Path) -> None:
    file = _write(tmp_path) / "own.npz"
    content = bytearray(file.read_bytes())
    content[200:400] = bytes(200)
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        archives(tmp_path, ["own"])
