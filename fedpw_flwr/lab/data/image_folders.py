"""Pictures as files, one folder a class: for sets that are handed around as photographs.

``FOLDER/train/CLASS/*.png`` and ``FOLDER/test/CLASS/*.png``, or ``FOLDER/CLASS/*.jpg`` alone, of
which a part is kept for testing: the same pictures in every run, of every class as large a part.
torchvision's ``ImageFolder`` finds them, any format that Pillow reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedpw_flwr.lab.data.images import ImageSet

__all__ = ["ImageFolderSet"]

_SPLIT_SEED = 0
_PART = 256


@dataclass(frozen=True)
class ImageFolderSet:
    """A domain of picture files.

    Parameters
    ----------
    folder : Path
        Holds one folder a class, or the folders ``train`` and ``test`` that do.
    test_share : float
        Part of every class that is kept for testing where there is no ``test``, above 0 and below
        1.

    Raises
    ------
    ValueError
        If `test_share` is out of range.
    """

    folder: Path
    test_share: float

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1:
            raise ValueError(
                f"dataset.test_share must be above 0 and below 1, got {self.test_share}"
            )

    def files(self) -> list[Path]:
        """Return all that is in the folder, whether pictures or not."""
        return list(self.folder.rglob("*"))

    def classes(self) -> list[str]:
        """Return the names of the classes in the order of their labels, without reading pictures.

        Raises
        ------
        FileNotFoundError
            If the folder is missing or has no folders.
        """
        names = [path.name for path in self._parts()[0].glob("*/")]
        if not names:
            raise FileNotFoundError(f"there are no pictures in {self.folder}")
        return sorted(names)

    def read(
        self, *, image_size: int, channels: int, num_classes: int
    ) -> tuple[ImageSet, ImageSet]:
        """Read training and test pictures, squeezed to squares (bilinear, antialiased).

        Raises
        ------
        FileNotFoundError
            If the folder or a class is empty or missing.
        ValueError
            If there are other classes than `num_classes`, a class has too few pictures to be
            divided, or a file is no picture.
        """
        classes = self.classes()
        if len(classes) != num_classes:
            raise ValueError(
                f"{self.folder} has {len(classes)} folders of classes ({', '.join(classes)}), but "
                f"dataset.num_classes={num_classes}"
            )
        parts = [self._read_folder(part, classes, image_size, channels) for part in self._parts()]
        if len(parts) == 2:
            return parts[0], parts[1]
        (pictures,) = parts
        train, test = self._split(pictures.labels.numpy())
        return pictures.select(train), pictures.select(test)

    def _parts(self) -> list[Path]:
        parts = [self.folder / "train", self.folder / "test"]
        return parts if all(part.is_dir() for part in parts) else [self.folder]

    def _read_folder(
        self, folder: Path, classes: Sequence[str], image_size: int, channels: int
    ) -> ImageSet:
        # Takes seconds to import: only a process that reads picture files pays for it.
        from torchvision.datasets import ImageFolder

        found = ImageFolder(folder)
        if found.classes != list(classes):
            raise ValueError(
                f"{folder} has the classes {', '.join(found.classes)}, but the training pictures "
                f"are of {', '.join(classes)}"
            )
        files, labels = zip(*found.samples, strict=True)
        return ImageSet(
            torch.from_numpy(_decoded(files, image_size, channels)),
            torch.tensor(labels, dtype=torch.int64),
        )

    def _split(self, labels: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        from sklearn.model_selection import train_test_split

        try:
            train, test = train_test_split(
                np.arange(len(labels)),
                test_size=self.test_share,
                stratify=labels,
                random_state=_SPLIT_SEED,
            )
        except ValueError as error:
            raise ValueError(
                f"the pictures in {self.folder} cannot be divided with dataset.test_share="
                f"{self.test_share}: {error}"
            ) from error
        return torch.from_numpy(np.sort(train)), torch.from_numpy(np.sort(test))


def _decoded(files: Sequence[str], image_size: int, channels: int) -> NDArray[np.uint8]:
    """Read picture files into one array (N, channels, image_size, image_size)."""
    pixels = np.empty((len(files), image_size, image_size, channels), dtype=np.uint8)

    def read_part(start: int) -> None:
        for place, file in enumerate(files[start : start + _PART], start):
            pixels[place] = _picture(file, image_size, channels)

    # Pillow decodes and resizes outside of Python's lock.
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(read_part, range(0, len(files), _PART)):
            pass
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _picture(file: str, image_size: int, channels: int) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB" if channels == 3 else "L").resize(
                (image_size, image_size), Image.Resampling.BILINEAR
            )
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{file} is no picture, or damaged ({error}): copy it again, or remove it"
        ) from error
    return np.asarray(picture, dtype=np.uint8).reshape(image_size, image_size, channels)
