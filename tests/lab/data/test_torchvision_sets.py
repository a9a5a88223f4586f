"""Files in the formats of the original sets, made of scikit-learn's digits, read by torchvision."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import pickle
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
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

from fedpw_flwr.lab.data.examples import ImageFormat, ImageSet
from fedpw_flwr.lab.data.locations import TORCHVISION_FILES
from fedpw_flwr.lab.data.torchvision_sets import TorchvisionSet

Images = NDArray[np.uint8]

_scans, LABELS = load_digits(return_X_y=True)
GREY = (_scans.reshape(-1, 8, 8) * 15).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
SPLITS = {"train": slice(0, 50), "test": slice(50, 80)}


def _coloured(images: Images, size: int = 16) -> Images:
    """Colour images (N, size, size, 3): full red, half green, no blue."""
    colour = np.zeros((len(images), size, size, 3), dtype=np.uint8)
    colour[:, :16, :16, 0] = images
    colour[:, :16, :16, 1] = images // 2
    return colour


def _idx_files() -> dict[str, bytes]:
    """MNIST's four files by name."""
    files = {}
    for prefix, split in (("train", SPLITS["train"]), ("t10k", SPLITS["test"])):
        images, labels = GREY[split], LABELS[split].astype(np.uint8)
        header = struct.pack(">IIII", 0x803, *images.shape)
        files[f"{prefix}-images-idx3-ubyte"] = header + images.tobytes()
        files[f"{prefix}-labels-idx1-ubyte"] = struct.pack(">II", 0x801, len(labels)) + bytes(
            labels
        )
    return files


def _write_usps(folder: Path) -> None:
    for name, split in (("usps.bz2", SPLITS["train"]), ("usps.t.bz2", SPLITS["test"])):
        rows = []
        for image, label in zip(GREY[split], LABELS[split], strict=True):
            pixels = (
                f"{index}:{value / 127.5 - 1:.6f}" for index, value in enumerate(image.flat, 1)
            )
            rows.append(f"{label + 1} {' '.join(pixels)}\n")
        (folder / name).write_bytes(bz2.compress("".join(rows).encode()))


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
    name: str, folder: Path, *, size: int = 16, channels: int = 3, num_classes: int = 10
) -> tuple[ImageSet, ImageSet]:
    return TorchvisionSet(name, folder).read(ImageFormat(size, channels, num_classes))


@pytest.mark.parametrize("name", ["mnist", "usps", "fashion_mnist"])
def test_grey_sets_are_read_from_their_own_formats(folder: Path, name: str) -> None:
    train, test = _read(name, folder)
    assert len(train) == 50
    assert test.labels.tolist() == LABELS[50:80].tolist()
    assert np.abs(test.images[:, 1].int().numpy() - GREY[50:80]).max() <= 1
    grey, _ = _read(name, folder, channels=1)
    assert torch.equal(grey.images[:, 0], train.images[:, 2])


def test_svhn_keeps_colours_in_place_and_class_ten_is_digit_zero(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, split in SPLITS.items():
        file = folder / f"{part}_32x32.mat"
        images, labels = _coloured(GREY[split]).transpose(1, 2, 3, 0), LABELS[split]
        labels = np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)
        scipy.io.savemat(file, {"X": images, "y": labels})
        url, name, _ = SVHN.split_list[part]
        checksum = hashlib.md5(file.read_bytes()).hexdigest()
        monkeypatch.setitem(SVHN.split_list, part, [url, name, checksum])
    train, _ = _read("svhn", folder)
    assert train.labels.tolist() == LABELS[:50].tolist()
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), _coloured(GREY[:50]))


def _write_cifar(folder: Path, kind: type[CIFAR10], monkeypatch: pytest.MonkeyPatch) -> None:
    """Write batches as the authors did, and let torchvision expect their checksums."""
    base = folder / kind.base_folder
    base.mkdir()

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    key, step = ("fine_labels", 11) if kind is CIFAR100 else ("labels", 1)
    for part, split in SPLITS.items():
        rows = _coloured(GREY[split], 32).transpose(0, 3, 1, 2).reshape(-1, 3 * 32 * 32)
        content = {"data": rows, key: (LABELS[split] * step).tolist()}
        batches = [write(name, content) for name, _ in getattr(kind, f"{part}_list")]
        monkeypatch.setattr(kind, f"{part}_list", batches)
    names = {kind.meta["key"]: [str(number) for number in range(100)]}
    _, checksum = write(kind.meta["filename"], names)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": checksum})


@pytest.mark.parametrize(
    ("name", "kind", "batches", "step"), [("cifar10", CIFAR10, 5, 1), ("cifar100", CIFAR100, 1, 11)]
)
def test_cifar_is_read_from_the_authors_batches(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: type[CIFAR10],
    batches: int,
    step: int,
) -> None:
    _write_cifar(tmp_path, kind, monkeypatch)
    train, test = _read(name, tmp_path, size=32, num_classes=100)
    assert np.array_equal(test.images.permute(0, 2, 3, 1).numpy(), _coloured(GREY[50:80], 32))
    assert test.labels.tolist() == (LABELS[50:80] * step).tolist()
    assert len(train) == 50 * batches
    assert len(TorchvisionSet(name, tmp_path).files()) == batches + 2


def test_cifar_of_other_bytes_than_torchvision_knows_is_not_unpickled(tmp_path: Path) -> None:
    base, trap = tmp_path / CIFAR10.base_folder, tmp_path / "unpickled"
    base.mkdir()
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        (base / name).write_bytes(f"cos\nmkdir\n(V{trap}\ntR.".encode())
    with pytest.raises(FileNotFoundError, match="cifar10 is not complete"):
        _read("cifar10", tmp_path)
    assert not trap.exists()
    pickle.loads((base / "data_batch_1").read_bytes())
    assert trap.exists()


@pytest.mark.parametrize("name", TORCHVISION_FILES)
def test_missing_set_says_how_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=rf"{name} is not complete .*dataset.download=true, .*archives_folder .*{name}\.npz",
    ) as refused:
        _read(name, tmp_path)
    assert "download=True" not in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00\x08", b"\x00\x00\x00\x00" * 4, struct.pack(">IIII", 0x803, 9, 9, 9)]
)
def test_a_damaged_or_missing_split_is_called_incomplete(folder: Path, content: bytes) -> None:
    (folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(content)
    (folder / "usps.t.bz2").unlink()
    for name in ("mnist", "usps"):
        with pytest.raises(FileNotFoundError, match=f"{name} is not complete"):
            _read(name, folder)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve Fashion-MNIST from a folder of this machine, as its own mirrors do."""
    served = tmp_path / "mirror"
    served.mkdir()
    resources = []
    for name, content in _idx_files().items():
        packed = gzip.compress(content)
        (served / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setattr(FashionMNIST, "mirrors", [address])
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield served
        server.shutdown()
        thread.join()


def test_download_fetches_a_set_once(tmp_path: Path, mirror: Path) -> None:
    wanted = TorchvisionSet("fashion_mnist", tmp_path / "new" / "data", download=True)
    assert wanted.files() == []
    # What is downloaded is cached under the same key as what was there.
    assert repr(wanted) == repr(replace(wanted, download=False))
    _, test = wanted.read(ImageFormat(16, 1, 10))
    assert np.array_equal(test.images[:, 0].numpy(), GREY[50:80])
    assert len(wanted.files()) == 4
    for file in mirror.iterdir():
        file.unlink()
    assert torch.equal(wanted.read(ImageFormat(16, 1, 10))[1].images, test.images)


def test_a_download_that_was_changed_on_the_way_is_refused(tmp_path: Path, mirror: Path) -> None:
    (mirror / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    wanted = TorchvisionSet("fashion_mnist", tmp_path / "data", download=True)
    with pytest.raises(FileNotFoundError, match=r"is not complete .*check the connection"):
        wanted.read(ImageFormat(16, 1, 10))
