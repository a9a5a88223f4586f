"""What a domain's images are read from, and the reading of all of them into one collection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypedDict

from fedpw_flwr.lab.data.cache import TrainAndTest, cached, source_key
from fedpw_flwr.lab.data.examples import Domain, DomainCollection, ImageFormat, at_most


class Source(Protocol):
    """Where one domain is read from; a dataclass whose ``repr`` tells all that matters.

    **To add one**, write a frozen dataclass with these two methods and name it in
    :mod:`fedpw_flwr.lab.data.named_sets`.
    """

    def files(self) -> Sequence[Path]:
        """Return the files that decide what is read; those that are missing do no harm."""

    def read(self, wanted: ImageFormat) -> TrainAndTest:
        """Return training and test images.

        FileNotFoundError, with what to get and where to put it, if the set is missing; ValueError
        if it is damaged or of another form.
        """


class ImageOptions(TypedDict, total=False):
    """Options of every set of images, as :func:`read_collection` explains them."""

    image_size: int
    channels: int
    num_classes: int
    max_test_per_domain: int | None
    mean: Sequence[float] | None
    std: Sequence[float] | None


def read_collection(
    sources: Sequence[tuple[str, Source]],
    *,
    image_size: int = 32,
    channels: int = 3,
    num_classes: int = 10,
    max_test_per_domain: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> DomainCollection:
    """Read domains by name, each from this machine's cache, or from its source and keep it there.

    Parameters
    ----------
    sources : sequence of (str, Source)
        Names of the domains in client order, and where each is read from.
    image_size : int (default: 32)
        Height and width every image is brought to, in pixels.
    channels : int (default: 3)
        1 or 3; grey images become RGB by repetition.
    num_classes : int (default: 10)
        Labels must lie in ``range(num_classes)``.
    max_test_per_domain : int or None (default: None)
        Keep at most so many test images of a domain: the same random ones in every run.
    mean, std : sequence of float, optional (default: ImageNet's, as in the paper)
        Normalisation, one number a channel in the 0-1 scale.

    The errors of :meth:`Source.read` pass through.
    """
    wanted = ImageFormat(image_size, channels, num_classes)
    domains = []
    for name, source in sources:
        train, test = _read(name, source, wanted)
        domains.append(Domain(name, train, at_most(test, max_test_per_domain)))
    return DomainCollection(tuple(domains), num_classes, tuple(mean or ()), tuple(std or ()))


def _read(name: str, source: Source, wanted: ImageFormat) -> TrainAndTest:
    return cached(
        lambda: source_key(f"{name} {source!r} {wanted!r}", source.files()),
        lambda: source.read(wanted),
    )
