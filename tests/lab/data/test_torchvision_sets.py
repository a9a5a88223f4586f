"""Files in the formats of the original sets, made of scikit-learn's digits, read by torchvision."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import pickle
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100, SVHN, FashionMNIST

from fedpw_flwr.lab.data.images import ImageSet
from fedpw_flwr.lab.data.torchvision_sets import TORCHVISION_SETS, TorchvisionSet

Pictures = NDArray[np.uint8]
Labels = NDArray[np.int64]


def _splits() -> dict[str, tuple[Pictures, Labels]]:
    pictures, labels = load_digits(return_X_y=True)
    grey = (pictures.reshape(-1, 8, 8) * 15).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    return {"train": (grey[:50], labels[:50]), "test": (grey[50:80], labels[50:80])}


def _coloured(pictures: Pictures, size: int = 16) -> Pictures:
    """Colour pictures (N, size, size, 3): full red, half green, no blue."""
    colour = np.zeros((len(pictures), size, size, 3), dtype=np.uint8)
    colour[:, :16, :16, 0] = pictures
    colour[:, :16, :16, 1] = pictures // 2
    return colour


def _idx_files() -> dict[str, bytes]:
    """MNIST's four files by name."""
    files = {}
    for split, (pictures, labels) in _splits().items():
        prefix = "train" if split == "train" else "t10k"
        header = struct.pack(">IIII", 0x803, *pictures.shape)
        files[f"{prefix}-images-idx3-ubyte"] = header + pictures.tobytes()
        header = struct.pack(">II", 0x801, len(labels))
        files[f"{prefix}-labels-idx1-ubyte"] = header + labels.astype(np.uint8).tobytes()
    return files


def _write_usps(folder: Path) -> None:
    for split, (pictures, labels) in _splits().items():
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
        (folder / name).write_bytes(bz2.compress(("\n".join(rows) + "\n").encode()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("MNIST", "FashionMNIST"):
        raw = tmp_path / name / "raw"
        raw.mkdir(parents=True)
        for file, content in _idx_files().items():
            (raw / file).write_bytes(content)
    _write_usps(tmp_path)
    return tmp_path


def _read(
    name: str, folder: Path, *, image_size: int = 16, channels: int = 3, num_classes: int = 10
) -> tuple[ImageSet, ImageSet]:
    return TorchvisionSet(name, folder).read(
        image_size=image_size, channels=channels, num_classes=num_classes
    )


@pytest.mark.parametrize("name", ["mnist", "usps", "fashion_mnist"])
def test_grey_sets_are_read_from_their_own_formats(folder: Path, name: str) -> None:
    train, test = _read(name, folder)
    pictures, labels = _splits()["test"]
    assert test.labels.tolist() == labels.tolist()
    difference = test.images[:, 1].int().numpy() - pictures.astype(int)
    assert np.abs(difference).max() <= 1
    assert len(train) == 50
    grey, _ = _read(name, folder, channels=1)
    assert torch.equal(grey.images[:, 0], train.images[:, 2])


def test_svhn_keeps_colours_in_place_and_class_ten_is_digit_zero(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, (pictures, labels) in _splits().items():
        file = folder / f"{split}_32x32.mat"
        scipy.io.savemat(
            file,
            {
                "X": _coloured(pictures).transpose(1, 2, 3, 0),
                "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8),
            },
        )
        url, name, _ = SVHN.split_list[split]
        checksum = hashlib.md5(file.read_bytes()).hexdigest()
        monkeypatch.setitem(SVHN.split_list, split, [url, name, checksum])
    train, _ = _read("svhn", folder)
    pictures, labels = _splits()["train"]
    assert train.labels.tolist() == labels.tolist()
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), _coloured(pictures))


def _write_cifar(
    folder: Path, kind: type[CIFAR10], batches: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write batches, split by name, as the authors did, and let torchvision expect their sums."""
    base = folder / kind.base_folder
    base.mkdir()
    sums = {}

    def write(name: str, content: dict[str, Any]) -> None:
        (base / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((base / name).read_bytes()).hexdigest()

    key = "fine_labels" if kind is CIFAR100 else "labels"
    for name, split in batches.items():
        pictures, labels = _splits()[split]
        rows = _coloured(pictures, 32).transpose(0, 3, 1, 2).reshape(len(pictures), -1)
        write(name, {"data": rows, key: (labels * (11 if kind is CIFAR100 else 1)).tolist()})
    write(kind.meta["filename"], {kind.meta["key"]: [str(number) for number in range(100)]})
    for split, attribute in (("train", "train_list"), ("test", "test_list")):
        entries = [[name, sums[name]] for name, part in batches.items() if part == split]
        monkeypatch.setattr(kind, attribute, entries)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})


@pytest.mark.parametrize(
    ("name", "kind", "batches", "classes"),
    [
        (
            "cifar10",
            CIFAR10,
            {"data_batch_1": "train", "data_batch_2": "train", "test_batch": "test"},
            10,
        ),
        ("cifar100", CIFAR100, {"train": "train", "test": "test"}, 100),
    ],
)
def test_cifar_is_read_from_the_authors_batches(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: type[CIFAR10],
    batches: dict[str, str],
    classes: int,
) -> None:
    _write_cifar(tmp_path, kind, batches, monkeypatch)
    train, test = _read(name, tmp_path, image_size=32, num_classes=classes)
    pictures, labels = _splits()["test"]
    assert np.array_equal(test.images.permute(0, 2, 3, 1).numpy(), _coloured(pictures, 32))
    assert test.labels.tolist() == (labels * (classes // 10 + (classes > 10))).tolist()
    assert len(train) == 50 * (len(batches) - 1)
    assert len(TorchvisionSet(name, tmp_path).files()) == len(batches) + 1


def test_cifar_of_other_bytes_than_torchvision_knows_is_not_unpickled(tmp_path: Path) -> None:
    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    trap = tmp_path / "unpickled"
    content = pickle.dumps(_Trap(trap))
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        (base / name).write_bytes(content)
    with pytest.raises(FileNotFoundError, match="cifar10 is not complete"):
        _read("cifar10", tmp_path)
    assert not trap.exists()


class _Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_missing_set_says_how_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=rf"{name} is not complete .*dataset.download=true, .*archives_folder .*{name}\.npz",
    ) as refused:
        _read(name, tmp_path)
    assert "download=True" not in str(refused.value)


def test_missing_test_split_is_noticed(folder: Path) -> None:
    (folder / "usps.t.bz2").unlink()
    with pytest.raises(FileNotFoundError, match="usps is not complete"):
        _read("usps", folder)


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00\x08", b"\x00\x00\x00\x00" * 4, struct.pack(">IIII", 0x803, 9, 9, 9)]
)
def test_damaged_mnist_is_called_incomplete(folder: Path, content: bytes) -> None:
    (folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(FileNotFoundError, match="mnist is not complete"):
        _read("mnist", folder)


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Serve a folder on this machine, as the sets' own mirrors do."""
    served = tmp_path / "mirror"
    served.mkdir()
    handler = partial(_SilentHandler, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", served
        server.shutdown()
        thread.join()


class _SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def _offer(address: str, served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resources = []
    for name, content in _idx_files().items():
        packed = gzip.compress(content)
        (served / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    monkeypatch.setattr(FashionMNIST, "mirrors", [address])


def test_download_fetches_a_set_once(
    tmp_path: Path, mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _offer(*mirror, monkeypatch)
    wanted = TorchvisionSet("fashion_mnist", tmp_path / "new" / "data", download=True)
    assert wanted.files() == []
    _, test = wanted.read(image_size=16, channels=1, num_classes=10)
    assert np.array_equal(test.images[:, 0].numpy(), _splits()["test"][0])
    assert len(wanted.files()) == 4
    for file in mirror[1].iterdir():
        file.unlink()
    _, again = wanted.read(image_size=16, channels=1, num_classes=10)
    assert torch.equal(again.images, test.images)


def test_a_download_that_was_changed_on_the_way_is_refused(
    tmp_path: Path, mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, served = mirror
    _offer(address, served, monkeypatch)
    (served / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded .*check the connection"):
        TorchvisionSet("fashion_mnist", tmp_path / "data", download=True).read(
            image_size=16, channels=1, num_classes=10
        )


def test_too_few_classes_are_refused_with_how_many_there_are(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"mnist has 10 classes: set dataset\.num_classes"):
        _read("mnist", folder, num_classes=5)


def test_whether_to_download_does_not_tell_pictures_apart(tmp_path: Path) -> None:
    with_download = TorchvisionSet("mnist", tmp_path, download=True)
    assert repr(with_download) == repr(TorchvisionSet("mnist", tmp_path))
