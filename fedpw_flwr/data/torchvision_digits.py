"""The full MNIST, USPS and SVHN as torchvision downloads them.

Use it where the internet can be reached, once, with ``download`` on: later runs find the files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpw_flwr.data.conversion import to_uint8_images
from fedpw_flwr.data.images import Domain, DomainCollection, ImageSet, imagenet_normalisation
from fedpw_flwr.data.subset import at_most

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]


def torchvision_digits(
    folder: str | Path,
    domains: Sequence[str] = ("mnist", "usps", "svhn"),
    *,
    download: bool = False,
    image_size: int = 32,
    max_test_per_domain: int | None = None,
) -> DomainCollection:
    """Read MNIST, USPS and SVHN, or some of them, as RGB pictures of one size.

    Parameters
    ----------
    folder : str or Path
        Where torchvision keeps the files, and puts them when it downloads.
    domains : sequence of str, default all three
        Names among ``mnist``, ``usps`` and ``svhn``, in client order.
    download : bool, default False
        Fetch what is missing. Pictures that are there are not fetched again.
    image_size : int, default 32
        Height and width every picture is brought to, in pixels.
    max_test_per_domain : int or None, default None
        Keep at most so many test pictures of a domain: the same random ones in every run.

    Returns
    -------
    DomainCollection
        The domains in the order of `domains`, 10 classes, ImageNet's normalisation.

    Raises
    ------
    ValueError
        If a name is not one of the three.
    FileNotFoundError
        If a set is missing and `download` is off; the message says how to get it.
    RuntimeError
        If a download fails, or a file in the folder is damaged.
    """
    unknown = [name for name in domains if name not in _READERS]
    if unknown:
        raise ValueError(f"dataset.domains has {unknown}, allowed are {list(_READERS)}")
    mean, std = imagenet_normalisation(3)
    return DomainCollection(
        domains=tuple(
            _read_domain(name, Path(folder), download, image_size, max_test_per_domain)
            for name in domains
        ),
        num_classes=10,
        mean=mean,
        std=std,
    )


def _read_domain(
    name: str, folder: Path, download: bool, image_size: int, max_test: int | None
) -> Domain:
    train, test = (
        _image_set(_read_split(name, folder, is_train, download), image_size)
        for is_train in (True, False)
    )
    return Domain(name, train, at_most(test, max_test))


def _read_split(name: str, folder: Path, is_train: bool, download: bool) -> Split:
    if download:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        return _READERS[name](folder, is_train, download)
    except (RuntimeError, OSError, EOFError) as error:
        if download:
            raise RuntimeError(
                f"{name} could not be downloaded to, or read from, {folder} ({error}): check the "
                "connection, remove damaged files there, or put your own pictures into archives "
                "and use dataset=four_domains"
            ) from error
        raise FileNotFoundError(
            f"{name} is not complete in {folder} ({error}): fetch it once with "
            "dataset.download=true, or set dataset.folder to the folder where torchvision put it"
        ) from error


def _image_set(split: Split, image_size: int) -> ImageSet:
    pixels, labels = split
    return ImageSet(
        to_uint8_images(pixels, image_size=image_size, channels=3), torch.from_numpy(labels)
    )


def _as_split(pixels: Any, labels: Any) -> Split:
    return np.asarray(pixels, dtype=np.uint8), np.asarray(labels, dtype=np.int64)


# torchvision takes seconds to import: only a process that reads these sets pays for it.
def _read_mnist(folder: Path, is_train: bool, download: bool) -> Split:
    from torchvision.datasets import MNIST

    split = MNIST(folder, train=is_train, download=download)
    return _as_split(split.data, split.targets)


def _read_usps(folder: Path, is_train: bool, download: bool) -> Split:
    from torchvision.datasets import USPS

    split = USPS(folder, train=is_train, download=download)
    return _as_split(split.data, split.targets)


def _read_svhn(folder: Path, is_train: bool, download: bool) -> Split:
    from torchvision.datasets import SVHN

    split = SVHN(folder, split="train" if is_train else "test", download=download)
    return _as_split(split.data.transpose(0, 2, 3, 1), split.labels)


_READERS: dict[str, Callable[[Path, bool, bool], Split]] = {
    "mnist": _read_mnist,
    "usps": _read_usps,
    "svhn": _read_svhn,
}
