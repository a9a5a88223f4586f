"""Labelled images in memory: what every data source hands over, and what clients train on.

Images stay ``uint8`` tensors in one piece (a quarter of the floats' size) and are cropped and
normalised a batch at a time on the device that trains.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of each RGB channel over ImageNet, in the 0-1 scale; what the paper normalises with."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of each RGB channel over ImageNet, in the 0-1 scale."""

_SUBSET_SEED = 0


@dataclass(frozen=True)
class ImageFormat:
    """What all sources are brought to: squares of so many pixels, 1 or 3 channels, the classes."""

    image_size: int
    channels: int
    num_classes: int


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, ``uint8`` (N, C, H, W), 0 to 255, and class indices from 0, ``int64`` (N,)."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        for name, tensor, dtype, axes in (
            ("images", self.images, torch.uint8, "N, C, H, W"),
            ("labels", self.labels, torch.int64, "N"),
        ):
            if tensor.dtype != dtype or tensor.ndim != len(axes.split()):
                raise ValueError(
                    f"{name} must be a tensor of {dtype} and shape ({axes}), got "
                    f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                )
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"each image needs one label, got {len(self.images)} images and "
                f"{len(self.labels)} labels"
            )

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as arrays, which Ray's processes map from memory that they share."""
        return _of_arrays, (self.images.numpy(), self.labels.numpy())

    def select(self, indices: Tensor) -> ImageSet:
        """Return the images at `indices` (``int64``, shape (M,)) in that order, as a copy."""
        return ImageSet(self.images[indices], self.labels[indices])


def _of_arrays(images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> ImageSet:
    with warnings.catch_warnings():
        # Shared arrays are read-only, which tensors cannot say; nobody writes to images.
        warnings.simplefilter("ignore")
        return ImageSet(torch.from_numpy(images), torch.from_numpy(labels))


def joined(sets: Sequence[ImageSet]) -> ImageSet:
    """Return the images of several sets, at least one, as one set in their order; a copy."""
    return ImageSet(
        torch.cat([one.images for one in sets]), torch.cat([one.labels for one in sets])
    )


def at_most(image_set: ImageSet, limit: int | None) -> ImageSet:
    """Return `limit` of the images, or all if there are no more or `limit` is None.

    They are drawn at random without replacement and stay in order. The draw is a constant of the
    data: runs with other seeds test on the same images.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"a limit on the number of images must be at least 1, got {limit}")
    if limit is None or len(image_set) <= limit:
        return image_set
    order = torch.randperm(len(image_set), generator=torch.Generator().manual_seed(_SUBSET_SEED))
    return image_set.select(order[:limit].sort().values)


@dataclass(frozen=True, eq=False)
class Domain:
    """One source of images: a camera, a hospital, a style.

    Its clients divide `train`. Nobody trains on `test`: the global model's accuracy on it is the
    domain's figure.
    """

    name: str
    train: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        for split, image_set in self.splits():
            if len(image_set) == 0:
                raise ValueError(f"domain {self.name!r} has no {split} images")

    def splits(self) -> Iterator[tuple[str, ImageSet]]:
        """Yield ``("training", train)`` and ``("test", test)``."""
        yield "training", self.train
        yield "test", self.test


@dataclass(frozen=True, eq=False)
class DomainCollection:
    """The domains of one experiment: what ``hydra.utils.instantiate(cfg.dataset)`` returns.

    Parameters
    ----------
    domains : tuple of Domain
        In client order: the first clients hold images of the first domain.
    num_classes : int
        Labels lie in ``range(num_classes)`` in every domain.
    mean, std : tuple of float (default: ImageNet's)
        For normalisation, one number a channel, in the 0-1 scale. For images with other than three
        channels, the default is the mean over ImageNet's channels.

    Raises
    ------
    ValueError
        If names repeat, images differ in shape, a label is out of range, or the normalisation
        does not fit the channels.
    """

    domains: tuple[Domain, ...]
    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.domains:
            raise ValueError("a collection needs at least one domain")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"domain names must differ from one another, got {self.names}")
        for domain in self.domains:
            for split, image_set in domain.splits():
                self._check(f"{split} images of domain {domain.name!r}", image_set)

        for key, imagenet in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            if not getattr(self, key):
                is_rgb = self.in_channels == 3
                usual = imagenet if is_rgb else (sum(imagenet) / 3,) * self.in_channels
                object.__setattr__(self, key, usual)
        if {len(self.mean), len(self.std)} != {self.in_channels}:
            raise ValueError(
                f"mean and std need one number a channel ({self.in_channels}), got "
                f"{len(self.mean)} and {len(self.std)}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive in every channel, got {self.std}")

    def _check(self, where: str, image_set: ImageSet) -> None:
        shape = tuple(image_set.images.shape[1:])
        if shape != self.image_shape:
            raise ValueError(
                f"all images must have one shape: {where} are {shape}, the first domain's are "
                f"{self.image_shape}"
            )
        low, high = int(image_set.labels.min()), int(image_set.labels.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"labels must lie in 0..{self.num_classes - 1}: {where} have labels from {low} to "
                f"{high}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the domains, in client order."""
        return tuple(domain.name for domain in self.domains)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image, in pixels."""
        channels, height, width = self.domains[0].train.images.shape[1:]
        return channels, height, width

    @property
    def in_channels(self) -> int:
        """Number of channels a model for these images must accept."""
        return self.image_shape[0]
