"""The full sets that torchvision knows: MNIST, USPS, SVHN, Fashion-MNIST, CIFAR-10 and CIFAR-100.

torchvision downloads and checks them. Where the internet cannot be reached, the files can be copied
from a machine where it was, or taken from archives, see :mod:`fedpw_flwr.lab.data.archives`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpw_flwr.lab.data.conversion import to_uint8_images
from fedpw_flwr.lab.data.images import ImageSet
from fedpw_flwr.lab.data.locations import TORCHVISION_FILES

__all__ = ["TORCHVISION_SETS", "TorchvisionSet"]

_UNREADABLE = (RuntimeError, OSError, EOFError, ValueError, AssertionError, LookupError)
"""What torchvision's readers raise for files that are missing, damaged or others."""

_Split = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True)
class TorchvisionSet:
    """A set as torchvision keeps it on the disk.

    Parameters
    ----------
    name : str
        One of :data:`TORCHVISION_SETS`.
    folder : Path
        Where torchvision keeps the files, and puts them when it downloads.
    download : bool, default False
        Fetch what is missing. What is there is not fetched again.
    """

    name: str
    folder: Path
    download: bool = field(default=False, repr=False)

    def files(self) -> list[Path]:
        """Return torchvision's files of this set."""
        return list(self.folder.glob(TORCHVISION_FILES[self.name]))

    def read(
        self, *, image_size: int, channels: int, num_classes: int
    ) -> tuple[ImageSet, ImageSet]:
        """Read training and test pictures.

        torchvision unpickles CIFAR's files, after it compared their checksums with its own.

        Raises
        ------
        FileNotFoundError
            If the set is missing or damaged, or could not be downloaded.
        ValueError
            If there are other classes than `num_classes`, or colour pictures are asked for as grey.
        """
        train, test = (
            self._image_set(is_train, image_size, channels, num_classes)
            for is_train in (True, False)
        )
        return train, test

    def _image_set(
        self, is_train: bool, image_size: int, channels: int, num_classes: int
    ) -> ImageSet:
        pixels, labels = self._read_split(is_train)
        if labels.max() >= num_classes:
            raise ValueError(
                f"{self.name} has {labels.max() + 1} classes: set dataset.num_classes to it"
            )
        try:
            images = to_uint8_images(pixels, image_size=image_size, channels=channels)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        return ImageSet(images, torch.from_numpy(labels))

    def _read_split(self, is_train: bool) -> _Split:
        if self.download:
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            return _READERS[self.name](self.folder, is_train, self.download)
        except _UNREADABLE as error:
            # torchvision names its own argument, which nobody can give on the command line.
            reason = " ".join(str(error).split()).replace("download=True", "dataset.download=true")
            if self.download:
                raise FileNotFoundError(
                    f"{self.name} could not be downloaded to, or read from, {self.folder} "
                    f"({reason}): check the connection, remove damaged files there, or set "
                    f"dataset.archives_folder to a folder with {self.name}.npz"
                ) from error
            raise FileNotFoundError(
                f"{self.name} is not complete in {self.folder} ({reason}): fetch it once with "
                "dataset.download=true, or set dataset.folder to the folder where torchvision put "
                f"it, or dataset.archives_folder to a folder with {self.name}.npz"
            ) from error


def _as_split(pixels: Any, labels: Any) -> _Split:
    return np.asarray(pixels, dtype=np.uint8), np.asarray(labels, dtype=np.int64)


# torchvision takes seconds to import: only a process that reads these sets pays for it.
def _read_mnist(folder: Path, is_train: bool, download: bool) -> _Split:
    from torchvision.datasets import MNIST

    split = MNIST(folder, train=is_train, download=download)
    return _as_split(split.data, split.targets)


def _read_usps(folder: Path, is_train: bool, download: bool) -> _Split:
    from torchvision.datasets import USPS

    split = USPS(folder, train=is_train, download=download)
    return _as_split(split.data, split.targets)


def _read_svhn(folder: Path, is_train: bool, download: bool) -> _Split:
    from torchvision.datasets import SVHN

    split = SVHN(folder, split="train" if is_train else "test", download=download)
    return _as_split(split.data.transpose(0, 2, 3, 1), split.labels)


def _read_fashion_mnist(folder: Path, is_train: bool, download: bool) -> _Split:
    from torchvision.datasets import FashionMNIST

    split = FashionMNIST(folder, train=is_train, download=download)
    return _as_split(split.data, split.targets)


def _read_cifar10(folder: Path, is_train: bool, download: bool) -> _Split:
    from torchvision.datasets import CIFAR10

    split = CIFAR10(folder, train=is_train, download=download)
    return _as_split(split.data, split.targets)


def _read_cifar100(folder: Path, is_train: bool, download: bool) -> _Split:
    from torchvision.datasets import CIFAR100

    split = CIFAR100(folder, train=is_train, download=download)
    return _as_split(split.data, split.targets)


_READERS: dict[str, Callable[[Path, bool, bool], _Split]] = {
    "mnist": _read_mnist,
    "usps": _read_usps,
    "svhn": _read_svhn,
    "fashion_mnist": _read_fashion_mnist,
    "cifar10": _read_cifar10,
    "cifar100": _read_cifar100,
}
"""Read a split of a set: from folder, whether it is the training set, and whether to download."""

TORCHVISION_SETS = tuple(TORCHVISION_FILES)
"""Names of the domains that torchvision has."""
