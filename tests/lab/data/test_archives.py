from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.images import are_same, digit_arrays, write_archives

from fedpw_flwr.lab.data.archives import archives
from fedpw_flwr.lab.data.cache import cache_folder


def test_grey_and_colour_archives_become_domains_of_one_shape(tmp_path: Path) -> None:
    write_archives(tmp_path, "grey")
    colour = np.repeat(digit_arrays()["x_train"][..., None], 3, axis=3)
    write_archives(tmp_path, "colour", x_train=colour)
    collection = archives(tmp_path, ["grey", "colour"], image_size=12)
    assert collection.names == ("grey", "colour")
    assert collection.shape == (3, 12, 12)
    grey, coloured = collection.domains
    assert are_same(grey.train, coloured.train)
    assert grey.train.labels.dtype == torch.int64


def test_grey_archives_may_stay_grey(tmp_path: Path) -> None:
    collection = archives(write_archives(tmp_path, "own"), ["own"], image_size=8, channels=1)
    assert collection.in_channels == len(collection.mean) == 1
    read = collection.domains[0].train.features[:, 0].numpy()
    assert np.array_equal(read, digit_arrays()["x_train"])


def test_limited_test_images_are_always_the_same_and_of_all_classes_of_a_sorted_archive(
    tmp_path: Path,
) -> None:
    arrays = digit_arrays()
    order = arrays["y_train"].argsort(kind="stable")
    changes = {"x_test": arrays["x_train"][order], "y_test": arrays["y_train"][order]}
    write_archives(tmp_path, "own", **changes)
    first, second = (
        archives(tmp_path, ["own"], max_test_per_domain=30).domains[0].test for _ in range(2)
    )
    assert len(first) == 30
    assert are_same(first, second)
    assert first.labels.unique().numel() >= 8


def test_an_archive_is_decoded_once_a_machine_until_it_changes(tmp_path: Path) -> None:
    write_archives(tmp_path, "own")
    first, again = (archives(tmp_path, ["own"], image_size=8) for _ in range(2))
    assert len(list(cache_folder().iterdir())) == 1
    assert are_same(first, again)
    write_archives(tmp_path, "own", x_train=255 - digit_arrays()["x_train"])
    inverted = archives(tmp_path, ["own"], image_size=8)
    assert torch.equal(inverted.domains[0].train.features, 255 - first.domains[0].train.features)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"own.npz has no y_test, only \['x_test', 'x_train', 'y_train'\]"),
        ({"x_train": np.zeros((60, 8, 8))}, "x_train in .* is float64, not uint8"),
        ({"y_train": np.zeros(60)}, "y_train in .* is float64, not an integer type"),
        ({"y_train": np.zeros(59, int)}, r"y_train in .* has shape \(59,\) for 60 images"),
        ({"y_train": np.full(60, 10)}, "y_train in .* from 10 to 10. Set dataset.num_classes"),
        ({"y_test": np.full(40, -1)}, "y_test in .* from -1 to -1. Labels count from 0"),
        ({"x_train": np.zeros((60, 64), np.uint8)}, r"x_train in .*got \(60, 64\)"),
        (
            {"x_test": np.zeros((0, 8, 8), np.uint8), "y_test": np.zeros(0, int)},
            "x_test in .* is empty",
        ),
        ({"y_train": np.array([{"a": 1}] * 60, dtype=object)}, "holds Python objects"),
    ],
)
def test_wrong_array_is_named_with_what_is_wrong(
    tmp_path: Path, changes: dict[str, NDArray[Any] | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        archives(write_archives(tmp_path, "own", **changes), ["own"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-200], "cut short"),
        (lambda content: content[:200] + bytes(200) + content[400:], "damaged"),
    ],
)
def test_a_damaged_archive_is_called_so(tmp_path: Path, damage: Any, message: str) -> None:
    file = write_archives(tmp_path, "own") / "own.npz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=message):
        archives(tmp_path, ["own"])
