"""Labelled examples in memory: what every data source hands over, and what clients train on.

They are tensors of any form: rows of a table, or images, the one kind that training augments.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of each RGB channel over ImageNet, in the 0-1 scale; what the paper normalises with."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of each RGB channel over ImageNet, in the 0-1 scale."""

_SUBSET_SEED = 0

AnyExamples = TypeVar("AnyExamples", bound="Examples")


@dataclass(frozen=True, eq=False)
class Examples:
    """Features, ``float32`` (N, ...), as the model takes them, and class indices, ``int64`` (N,).

    Classes count from 0.
    """

    features: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        self._check_features()
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise ValueError(
                "labels must be a tensor of torch.int64 and shape (N), got "
                f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        if len(self.features) != len(self.labels):
            raise ValueError(
                f"each example needs one label, got {len(self.features)} examples and "
                f"{len(self.labels)} labels"
            )

    def _check_features(self) -> None:
        if self.features.dtype != torch.float32 or self.features.ndim < 2:
            raise ValueError(
                "features must be a tensor of torch.float32 (as .float() makes one) and shape "
                f"(N, D) or with more axes, got {self.features.dtype} of shape "
                f"{tuple(self.features.shape)}"
            )
        holes = int((~self.features.isfinite()).sum())
        if holes:
            raise ValueError(
                f"{holes} of the features are not finite (NaN or infinity): fill in what is missing"
            )

    def __len__(self) -> int:
        """Return N, the number of examples."""
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as arrays, which Ray's processes map from memory that they share."""
        return _of_arrays, (type(self), self.features.numpy(), self.labels.numpy())

    def select(self, indices: Tensor) -> Self:
        """Return the examples at `indices` (``int64``, shape (M,)) in that order, as a copy."""
        return type(self)(self.features[indices], self.labels[indices])


class ImageSet(Examples):
    """Images, ``uint8`` (N, C, H, W), 0 to 255, and class indices from 0, ``int64`` (N,).

    They stay in one piece (a quarter of the floats' size) and are cropped and normalised a batch at
    a time on the device that trains.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__(images, labels)

    def _check_features(self) -> None:
        if self.features.dtype != torch.uint8 or self.features.ndim != 4:
            raise ValueError(
                "images must be a tensor of torch.uint8 and shape (N, C, H, W), got "
                f"{self.features.dtype} of shape {tuple(self.features.shape)}"
            )

    @property
    def images(self) -> Tensor:
        """The features, which are pixels."""
        return self.features


def _of_arrays(
    kind: type[Examples], features: npt.NDArray[Any], labels: npt.NDArray[Any]
) -> Examples:
    with warnings.catch_warnings():
        # Shared arrays are read-only, which tensors cannot say; nobody writes to examples.
        warnings.simplefilter("ignore")
        return kind(torch.from_numpy(features), torch.from_numpy(labels))


def joined(sets: Sequence[AnyExamples]) -> AnyExamples:
    """Return the examples of several sets of one kind, at least one, in their order; a copy."""
    return type(sets[0])(
        torch.cat([one.features for one in sets]), torch.cat([one.labels for one in sets])
    )


def at_most(examples: AnyExamples, limit: int | None) -> AnyExamples:
    """Return `limit` of the examples, or all if there are no more or `limit` is None.

    They are drawn at random without replacement and stay in order. The draw is a constant of the
    data: runs with other seeds test on the same examples.
    """
    if limit is None or len(examples) <= limit:
        return examples
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(_SUBSET_SEED))
    return examples.select(order[:limit].sort().values)


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Raise ValueError, which names `where`, if labels are not in ``range(num_classes)``."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        remedy = "Labels count from 0" if low < 0 else "Set dataset.num_classes to their number"
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}: {where} have labels from {low} to {high}. "
            f"{remedy}"
        )


def stratified(labels: Tensor, test_share: float, seed: int, where: str) -> tuple[Tensor, Tensor]:
    """Return indices, in order, to train and to test on: of each class the same share.

    Raises ValueError, which names `where`, if a class has too few examples.
    """
    from sklearn.model_selection import train_test_split

    try:
        parts = train_test_split(
            torch.arange(len(labels)).numpy(),
            test_size=test_share,
            stratify=labels.numpy(),
            random_state=seed,
        )
    except ValueError as error:
        raise ValueError(
            f"{where} cannot be divided with dataset.test_share={test_share}: {error}"
        ) from error
    train, test = (torch.from_numpy(part).sort().values for part in parts)
    return train, test


@dataclass(frozen=True)
class ImageFormat:
    """What all sources are brought to: squares of so many pixels, 1 or 3 channels, the classes."""

    image_size: int
    channels: int
    num_classes: int


@dataclass(frozen=True, eq=False)
class Domain:
    """One source of examples: a camera, a hospital, a style.

    Its clients divide `train`. Nobody trains on `test`: the global model's accuracy on it is the
    domain's figure.
    """

    name: str
    train: Examples
    test: Examples

    def __post_init__(self) -> None:
        for split, examples in self.splits():
            if len(examples) == 0:
                raise ValueError(f"domain {self.name!r} has no {split} examples")

    def splits(self) -> Iterator[tuple[str, Examples]]:
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
        Of images, for normalisation: one number a channel, in the 0-1 scale. For images with other
        than three channels, the default is the mean over ImageNet's channels. Examples of other
        kinds have none: they are as the model takes them.

    Raises
    ------
    ValueError
        If names repeat, examples differ in kind or shape, a label is out of range, or the
        normalisation does not fit the channels.
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
            for split, examples in domain.splits():
                self._check(f"{split} examples of domain {domain.name!r}", examples)
        if self.are_images:
            self._complete_normalisation()
        elif self.mean or self.std:
            raise ValueError("mean and std are for images: other features are as models take them")

    def _complete_normalisation(self) -> None:
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

    def _check(self, where: str, examples: Examples) -> None:
        first = self.domains[0].train
        if type(examples) is not type(first) or examples.features.shape[1:] != self.shape:
            raise ValueError(
                f"all examples must be of one kind and shape: {where} are "
                f"{type(examples).__name__} of {tuple(examples.features.shape[1:])}, the first "
                f"domain's {type(first).__name__} of {self.shape}"
            )
        check_labels(examples.labels, self.num_classes, where)

    def digest(self) -> str:
        """Return the SHA-256 of all features and labels and of how they are scaled.

        A name in a configuration stands for whatever files lie there today: this tells which.
        """
        digest = hashlib.sha256(repr((self.num_classes, self.mean, self.std)).encode())
        for domain in self.domains:
            digest.update(f"\n{domain.name}".encode())
            for _, examples in domain.splits():
                digest.update(repr(tuple(examples.features.shape)).encode())
                digest.update(examples.features.contiguous().numpy().data)
                digest.update(examples.labels.contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the domains, in client order."""
        return tuple(domain.name for domain in self.domains)

    @property
    def are_images(self) -> bool:
        """Whether the examples are images, which are scaled, cropped and mirrored in training."""
        return isinstance(self.domains[0].train, ImageSet)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example's features; of an image: channels, height and width, in pixels."""
        return tuple(self.domains[0].train.features.shape[1:])

    @property
    def in_channels(self) -> int:
        """Number of channels, or of a table's columns, that a model for these must accept."""
        return self.shape[0]
