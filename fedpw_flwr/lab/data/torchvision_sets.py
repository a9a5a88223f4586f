"""The full sets that torchvision knows: MNIST, USPS, SVHN, Fashion-MNIST, CIFAR-10 and CIFAR-100.

torchvision downloads and checks them. Where the internet cannot be reached, the files can be copied
from a machine where it was, or taken from archives, see :mod:`fedpw_flwr.lab.data.archives`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedpw_flwr.lab.data.conversion import to_uint8_images
from fedpw_flwr.lab.data.examples import ImageFormat, ImageSet, check_labels
from fedpw_flwr.lab.data.locations import TORCHVISION_FILES

_UNREADABLE = (RuntimeError, OSError, EOFError, ValueError, AssertionError, LookupError)
"""What torchvision's readers raise for files that are missing, damaged or others."""


@dataclass(frozen=True)
class TorchvisionSet:
    """The set `name` as torchvision keeps it in `folder`, where it also puts what it downloads."""

    name: str
    folder: Path
    download: bool = field(default=False, repr=False)

    def files(self) -> list[Path]:
        """Return torchvision's files of this set."""
        return list(self.folder.glob(TORCHVISION_FILES[self.name]))

    def read(self, wanted: ImageFormat) -> tuple[ImageSet, ImageSet]:
        """Read training and test images.

        torchvision unpickles CIFAR's files, after it compared their checksums with its own.
        """
        return self._image_set(True, wanted), self._image_set(False, wanted)

    def _image_set(self, is_train: bool, wanted: ImageFormat) -> ImageSet:
        try:
            pixels, labels = self._read_split(is_train)
        except _UNREADABLE as error:
            # torchvision names its own argument, which nobody can give on the command line.
            reason = " ".join(str(error).split()).replace("download=True", "dataset.download=true")
            advice = (
                "check the connection, remove damaged files there"
                if self.download
                else "fetch it once with dataset.download=true, or set dataset.folder to the "
                "folder where torchvision put it"
            )
            raise FileNotFoundError(
                f"{self.name} is not complete in {self.folder} ({reason}): {advice}, or set "
                f"dataset.archives_folder to a folder with {self.name}.npz"
            ) from error
        classes = torch.as_tensor(labels, dtype=torch.int64)
        check_labels(classes, wanted.num_classes, self.name)
        try:
            images = to_uint8_images(np.asarray(pixels), wanted)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        return ImageSet(images, classes)

    def _read_split(self, is_train: bool) -> tuple[Any, Any]:
        # Takes seconds to import: only a process that reads these sets pays for it.
        from torchvision import datasets

        # MNIST, USPS, SVHN, FashionMNIST, CIFAR10 or CIFAR100.
        kind = getattr(datasets, self.name.upper().replace("FASHION_", "Fashion"))
        if self.download:
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.name == "svhn":
            part = "train" if is_train else "test"
            split = kind(self.folder, split=part, download=self.download)
            return split.data.transpose(0, 2, 3, 1), split.labels
        split = kind(self.folder, train=is_train, download=self.download)
        return split.data, split.targets
