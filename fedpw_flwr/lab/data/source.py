"""What a named domain's pictures come from: a file's reader, a folder of pictures, a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fedpw_flwr.lab.data.cache import cached, collection_key
from fedpw_flwr.lab.data.images import Domain, DomainCollection, ImageSet, imagenet_normalisation

__all__ = ["Source", "read_domain"]


class Source(Protocol):
    """One kind of place to get a domain from; a dataclass whose ``repr`` tells all that matters.

    **To add one**, write a frozen dataclass with these two methods and name it in
    :mod:`fedpw_flwr.lab.data.named_sets`.
    """

    def files(self) -> Sequence[Path]:
        """Return the files that decide what is read; empty where they are missing."""

    def read(
        self, *, image_size: int, channels: int, num_classes: int
    ) -> tuple[ImageSet, ImageSet]:
        """Return training and test pictures.

        Parameters
        ----------
        image_size : int
            Height and width wanted, in pixels.
        channels : int
            1 or 3.
        num_classes : int
            Labels must lie in ``range(num_classes)``.

        Raises
        ------
        FileNotFoundError
            If the set is missing; the message says what to get and where to put it.
        ValueError
            If it is there, but damaged or of another form.
        """


def read_domain(
    name: str, source: Source, *, image_size: int, channels: int, num_classes: int
) -> Domain:
    """Read a domain from this machine's cache, or from its source and keep it there.

    Parameters
    ----------
    name : str
        Of the domain.
    source : Source
        What it is read from.
    image_size, channels, num_classes : int
        As :meth:`Source.read`, whose errors pass through.
    """
    call = f"{name} {source!r} {image_size=} {channels=} {num_classes=}"

    def build() -> DomainCollection:
        train, test = source.read(image_size=image_size, channels=channels, num_classes=num_classes)
        return DomainCollection(
            (Domain(name, train, test),), num_classes, *imagenet_normalisation(channels)
        )

    return cached(lambda: collection_key(call, source.files()), build).domains[0]
