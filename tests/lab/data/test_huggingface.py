"""Sets of images in the hub's layout: a folder of parquet files, as the hub keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value

from fedpw_flwr.lab.data.huggingface import huggingface

SIZE = {"image_size": 8, "num_classes": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images to train and six to test on, grey as their label, of two domains."""
    folder = tmp_path_factory.mktemp("hub") / "my_set"
    features = Features(
        {
            "image": Image(),
            "label": ClassLabel(names=["cat", "dog", "emu"]),
            "style": Value("string"),
        }
    )
    for split, count in (("train", 12), ("test", 6)):
        rows: dict[str, list[Any]] = {"image": [], "label": [], "style": []}
        for number in range(count):
            rows["image"].append(np.full((10, 12, 3), 50 * (number % 3), dtype=np.uint8))
            rows["label"].append(number % 3)
            rows["style"].append("photo" if number < count / 2 else "sketch")
        table = Dataset.from_dict(rows, features=features)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_splits_become_training_and_test_images(folder: Path) -> None:
    (domain,) = huggingface(["mine"], folder=folder, **SIZE).domains
    assert domain.name == "mine"
    assert domain.train.features.shape == (12, 3, 8, 8)
    assert domain.test.labels.tolist() == [0, 1, 2] * 2
    assert torch.equal(domain.train.features[:, 0, 0, 0], 50 * domain.train.labels)


def test_a_column_says_the_domain(folder: Path) -> None:
    grey = {"channels": 1, **SIZE}
    read = huggingface(["sketch", "photo"], folder=folder, domain_column="style", **grey)
    assert read.names == ("sketch", "photo")
    assert [len(domain.train) for domain in read.domains] == [6, 6]
    assert read.shape == (1, 8, 8)


def test_without_a_test_split_a_share_of_each_class_is_kept(folder: Path) -> None:
    share = {"test_split": None, "test_share": 0.25}
    (domain,) = huggingface(["mine"], folder=folder, **share, **SIZE).domains
    assert domain.test.labels.sort().values.tolist() == [0, 1, 2]
    assert len(domain.train) == 9


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"label_column": "fine"}, ValueError, r"no column fine.*there are image, label, style"),
        ({"domain_column": "style"}, ValueError, r"no image of .* is of 'mine'.*photo, sketch"),
        ({"image_column": "style"}, ValueError, r"style of .* holds no images.*image_column"),
        ({"label_column": "image"}, ValueError, r"image of .* holds no classes.*label_column"),
        ({"path": "my/set"}, ValueError, r"dataset\.path, .* or dataset\.folder: one of them"),
        ({"num_classes": 2}, ValueError, r" have labels from 0 to 2. Set dataset\.num"),
        ({"train_split": "learn"}, FileNotFoundError, r"cannot be loaded.*learn"),
        ({"folder": "/nowhere/set"}, FileNotFoundError, r"/nowhere/set cannot be loaded"),
    ],
)
def test_what_is_not_there_is_said(
    folder: Path, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        huggingface(["mine"], **{"folder": folder, **SIZE, **options})


def test_several_domains_need_a_column(folder: Path) -> None:
    with pytest.raises(ValueError, match="2 names: give one, or say in"):
        huggingface(["a", "b"], folder=folder)


def test_texts_are_the_same_classes_in_every_domain_and_split(tmp_path: Path) -> None:
    for split, names in (("train", "cat dog owl cat dog owl"), ("test", "cat owl dog owl")):
        classes = names.split()
        rows = {
            "image": [np.full((8, 8, 3), 9, dtype=np.uint8)] * len(classes),
            "label": classes,
            "style": ["photo" if n < len(classes) / 2 else "sketch" for n in range(len(classes))],
        }
        kinds = {"image": Image(), "label": Value("string"), "style": Value("string")}
        table = Dataset.from_dict(rows, features=Features(kinds))
        table.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    read = huggingface(["photo", "sketch"], folder=tmp_path, domain_column="style", **SIZE)
    photo, sketch = read.domains
    assert photo.test.labels.tolist() == [0, 2]
    assert sketch.test.labels.tolist() == [1, 2]
