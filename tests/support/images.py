"""Images to test with: random ones, and archives of scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from fedpw_flwr.lab.data.examples import DomainCollection, ImageSet


def random_images(count: int, seed: int, size: int = 4) -> ImageSet:
    """RGB images of ten classes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, size, size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.randint(0, 10, (count,), generator=generator))


def are_same(first: ImageSet | DomainCollection, second: ImageSet | DomainCollection) -> bool:
    """Whether images, labels, their order and the names of domains are the same."""
    if isinstance(first, ImageSet):
        assert isinstance(second, ImageSet)
        return torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)
    assert isinstance(second, DomainCollection)
    return first.names == second.names and all(
        are_same(mine.train, other.train) and are_same(mine.test, other.test)
        for mine, other in zip(first.domains, second.domains, strict=True)
    )


def digit_arrays(start: int = 0) -> dict[str, NDArray[Any]]:
    """Hundred of scikit-learn's digits in an archive's four arrays, 60 to train on."""
    scans, labels = load_digits(return_X_y=True)
    scans = (scans.reshape(-1, 8, 8) * 15).astype(np.uint8)
    train, test = slice(start, start + 60), slice(start + 60, start + 100)
    return {
        "x_train": scans[train],
        "y_train": labels[train],
        "x_test": scans[test],
        "y_test": labels[test],
    }


def write_archives(folder: Path, *names: str, **changes: NDArray[Any] | None) -> Path:
    """Write an archive a name, of different digits; `changes` replace arrays, None leaves out."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        arrays = {**digit_arrays(100 * number), **changes}
        kept = {key: array for key, array in arrays.items() if array is not None}
        np.savez_compressed(folder / f"{name}.npz", **kept)
    return folder
