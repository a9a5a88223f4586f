"""Images as files, one folder a class: for sets that are handed around as photographs.

``FOLDER/train/CLASS/*.png`` and ``FOLDER/test/CLASS/*.png``, or ``FOLDER/CLASS/*.jpg`` alone, of
which a part is kept for testing: the same images in every run, of every class as large a part.
torchvision's ``ImageFolder`` finds them, any format that Pillow reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedpw_flwr.lab.data.examples import ImageFormat, ImageSet, stratified

if TYPE_CHECKING:
    from PIL.Image import Image

_SPLIT_SEED = 0
_BILINEAR = 2  # Pillow's number


@dataclass(frozen=True)
class ImageFolderSet:
    """A domain of image files in `folder`: one folder a class, or ``train`` and ``test`` of such.

    `test_share` is the part of every class that is kept for testing where there is no ``test``.
    """

    folder: Path
    test_share: float

    def files(self) -> list[Path]:
        """Return all that is in the folder, whether images or not."""
        return list(self.folder.rglob("*"))

    def classes(self) -> list[str]:
        """Return the names of the classes in the order of their labels, without reading images."""
        return sorted(path.name for path in self._parts()[0].glob("*/"))

    def read(self, wanted: ImageFormat) -> tuple[ImageSet, ImageSet]:
        """Read training and test images, squeezed to squares (bilinear, antialiased).

        Raises ValueError if there are other classes than `wanted`, a class has too few images to be
        divided, or a file is no image; FileNotFoundError if a class is empty.
        """
        classes = self.classes()
        if len(classes) != wanted.num_classes:
            raise ValueError(
                f"{self.folder} has {len(classes)} folders of classes ({', '.join(classes)}), but "
                f"dataset.num_classes={wanted.num_classes}"
            )
        parts = [self._read_part(part, wanted) for part in self._parts()]
        if len(parts) == 1:
            return divided(parts[0], self.test_share, str(self.folder))
        train, test = parts
        return train, test

    def _parts(self) -> list[Path]:
        parts = [self.folder / "train", self.folder / "test"]
        return parts if all(part.is_dir() for part in parts) else [self.folder]

    def _read_part(self, folder: Path, wanted: ImageFormat) -> ImageSet:
        # Takes seconds to import: only a process that reads image files pays for it.
        from torchvision.datasets import ImageFolder

        found = ImageFolder(folder)
        if found.classes != self.classes():
            raise ValueError(
                f"{folder} has the classes {', '.join(found.classes)}, but the training images "
                f"are of {', '.join(self.classes())}"
            )
        size = wanted.image_size
        pixels = np.empty((len(found), size, size, wanted.channels), dtype=np.uint8)

        def decode(index: int) -> None:
            pixels[index] = _decoded(found.samples[index][0], wanted)

        # Pillow decodes and resizes outside of Python's lock.
        with ThreadPool() as pool:
            pool.map(decode, range(len(found)), chunksize=256)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        return ImageSet(images, torch.tensor(found.targets, dtype=torch.int64))


def divided(whole: ImageSet, test_share: float, where: str) -> tuple[ImageSet, ImageSet]:
    """Return images to train and to test on, the same in every run; raises as `stratified`."""
    train, test = stratified(whole.labels, test_share, _SPLIT_SEED, f"the images in {where}")
    return whole.select(train), whole.select(test)


def _decoded(file: str, wanted: ImageFormat) -> NDArray[np.uint8]:
    """Read one image as (image_size, image_size, channels)."""
    from PIL import Image

    try:
        with Image.open(file) as opened:
            return squared(opened, wanted)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{file} is no image, or damaged ({error}): copy it again, or remove it"
        ) from error


def squared(opened: Image, wanted: ImageFormat) -> NDArray[np.uint8]:
    """Squeeze an image to (image_size, image_size, channels), bilinear, antialiased."""
    size = (wanted.image_size, wanted.image_size)
    coloured = opened.convert("RGB" if wanted.channels == 3 else "L")
    image = coloured.resize(size, resample=_BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(*size, wanted.channels)
