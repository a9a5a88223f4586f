"""Labelled pictures in memory: the form in which every data source hands its domains to the rest.

Federated experiments on small pictures are bound by the time to feed a network, not by memory:
pictures stay ``uint8`` tensors in one piece (a quarter of the floats' size) and are cropped and
normalised a batch at a time on the device that trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of each RGB channel over ImageNet, in the 0-1 scale; what the paper normalises with."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of each RGB channel over ImageNet, in the 0-1 scale."""


def imagenet_normalisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return ImageNet's mean and standard deviation: per channel for RGB, averaged for grey."""
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (sum(IMAGENET_MEAN) / 3,) * channels, (sum(IMAGENET_STD) / 3,) * channels


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Pictures and their classes.

    Parameters
    ----------
    images : Tensor
        ``uint8`` of shape (N, C, H, W), 0 to 255.
    labels : Tensor
        ``int64`` of shape (N,), class indices from 0.

    Raises
    ------
    ValueError
        If a dtype or shape is another one, or the two lengths differ.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                "images must be a uint8 tensor of shape (N, C, H, W), got "
                f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise ValueError(
                "labels must be an int64 tensor of shape (N,), got "
                f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"as many labels as images are needed, got {len(self.images)} images "
                f"and {len(self.labels)} labels"
            )

    def __len__(self) -> int:
        """Return N, the number of pictures."""
        return len(self.labels)

    def select(self, indices: Tensor) -> ImageSet:
        """Return the pictures at `indices` (``int64``, shape (M,)) in that order, as a copy."""
        return ImageSet(self.images[indices], self.labels[indices])

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the same pictures on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device))


def joined(sets: Sequence[ImageSet]) -> ImageSet:
    """Return the pictures of several sets, at least one, as one set in their order; a copy."""
    return ImageSet(
        torch.cat([pictures.images for pictures in sets]),
        torch.cat([pictures.labels for pictures in sets]),
    )


@dataclass(frozen=True, eq=False)
class Domain:
    """One source of pictures (a camera, a hospital, a style), split into training and test set.

    Parameters
    ----------
    name : str
        What metrics and plots call it.
    train : ImageSet
        Divided among the domain's clients.
    test : ImageSet
        Never trained on; the global model's accuracy on it is the domain's figure.
    """

    name: str
    train: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        for split, pictures in (("training", self.train), ("test", self.test)):
            if len(pictures) == 0:
                raise ValueError(f"domain {self.name!r} has no {split} pictures")


@dataclass(frozen=True, eq=False)
class DomainCollection:
    """The domains of one experiment: what ``hydra.utils.instantiate(cfg.dataset)`` returns.

    Parameters
    ----------
    domains : tuple of Domain
        In client order: the first clients hold pictures of the first domain.
    num_classes : int
        Labels lie in ``range(num_classes)`` in every domain.
    mean, std : tuple of float
        For normalisation, one number a channel, in the 0-1 scale.

    Raises
    ------
    ValueError
        If names repeat, pictures differ in shape, a label is out of range, or the normalisation
        does not fit the channels.
    """

    domains: tuple[Domain, ...]
    num_classes: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not self.domains:
            raise ValueError("a collection needs at least one domain")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"domain names must differ from one another, got {self.names}")
        shape = self.image_shape
        for domain in self.domains:
            for split, pictures in (("training", domain.train), ("test", domain.test)):
                where = f"{split} pictures of domain {domain.name!r}"
                if tuple(pictures.images.shape[1:]) != shape:
                    raise ValueError(
                        f"all pictures must have one shape: {where} are "
                        f"{tuple(pictures.images.shape[1:])}, the first domain's are {shape}"
                    )
                low, high = int(pictures.labels.min()), int(pictures.labels.max())
                if low < 0 or high >= self.num_classes:
                    raise ValueError(
                        f"labels must lie in 0..{self.num_classes - 1}: {where} have labels "
                        f"from {low} to {high}"
                    )
        if len(self.mean) != shape[0] or len(self.std) != shape[0]:
            raise ValueError(
                f"mean and std need one number a channel ({shape[0]}), got "
                f"{len(self.mean)} and {len(self.std)}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive in every channel, got {self.std}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the domains, in client order."""
        return tuple(domain.name for domain in self.domains)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every picture, in pixels."""
        channels, height, width = self.domains[0].train.images.shape[1:]
        return channels, height, width

    @property
    def in_channels(self) -> int:
        """Number of channels a model for these pictures must accept."""
        return self.image_shape[0]
