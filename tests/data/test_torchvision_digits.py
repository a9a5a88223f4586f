"""Files in the formats of the original sets, made of scikit-learn's digits, read by torchvision."""

from __future__ import annotations

import bz2
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torchvision.datasets import SVHN

from fedpw_flwr.data.torchvision_digits import torchvision_digits

Pictures = NDArray[np.uint8]
Labels = NDArray[np.int64]


def _splits() -> dict[str, tuple[Pictures, Labels]]:
    pictures, labels = load_digits(return_X_y=True)
    grey = (pictures.reshape(-1, 8, 8) * 15).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    return {"train": (grey[:50], labels[:50]), "test": (grey[50:80], labels[50:80])}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, (pictures, labels) in _splits().items():
        prefix = "train" if split == "train" else "t10k"
        header = struct.pack(">IIII", 0x803, *pictures.shape)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + pictures.tobytes())
        header = struct.pack(">II", 0x801, len(labels))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            header + labels.astype(np.uint8).tobytes()
        )
        rows = [
            " ".join(
                [str(label + 1)]
                + [
                    f"{place + 1}:{value / 127.5 - 1:.6f}"
                    for place, value in enumerate(picture.flat)
                ]
            )
            for picture, label in zip(pictures, labels, strict=True)
        ]
        name = "usps.bz2" if split == "train" else "usps.t.bz2"
        (tmp_path / name).write_bytes(bz2.compress(("\n".join(rows) + "\n").encode()))
    return tmp_path


def test_mnist_and_usps_are_read_from_their_own_formats(folder: Path) -> None:
    collection = torchvision_digits(folder, ["mnist", "usps"], image_size=16)
    pictures, labels = _splits()["test"]
    for domain in collection.domains:
        assert domain.test.labels.tolist() == labels.tolist()
        difference = domain.test.images[:, 1].int().numpy() - pictures.astype(int)
        assert np.abs(difference).max() <= 1
        assert len(domain.train) == 50


def test_svhn_keeps_colours_in_place_and_class_ten_is_digit_zero(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, (pictures, labels) in _splits().items():
        colour = np.stack([pictures, pictures // 2, np.zeros_like(pictures)], axis=-1)
        file = folder / f"{split}_32x32.mat"
        scipy.io.savemat(
            file,
            {
                "X": colour.transpose(1, 2, 3, 0),
                "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8),
            },
        )
        url, name, _ = SVHN.split_list[split]
        checksum = hashlib.md5(file.read_bytes()).hexdigest()
        monkeypatch.setitem(SVHN.split_list, split, [url, name, checksum])
    (domain,) = torchvision_digits(folder, ["svhn"], image_size=16).domains
    pictures, labels = _splits()["train"]
    assert domain.train.labels.tolist() == labels.tolist()
    assert np.array_equal(domain.train.images[:, 0].numpy(), pictures)
    assert np.array_equal(domain.train.images[:, 1].numpy(), pictures // 2)
    assert not domain.train.images[:, 2].any()


def test_limit_on_test_pictures_holds(folder: Path) -> None:
    (domain,) = torchvision_digits(folder, ["usps"], max_test_per_domain=7).domains
    assert len(domain.test) == 7


@pytest.mark.parametrize("name", ["mnist", "usps", "svhn"])
def test_missing_set_says_how_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{name} is not complete .*dataset.download=true"):
        torchvision_digits(tmp_path, [name])


def test_missing_test_split_is_noticed(folder: Path) -> None:
    (folder / "usps.t.bz2").unlink()
    with pytest.raises(FileNotFoundError, match="usps is not complete"):
        torchvision_digits(folder, ["usps"])


def test_unknown_set_is_named_with_the_allowed_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['syn'\], allowed are \['mnist', 'usps', 'svhn'\]"):
        torchvision_digits(tmp_path, ["syn"])
