"""What a domain's images are read from, and the reading of all of them into one collection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fedpw_flwr.lab.data.cache import cached, collection_key
from fedpw_flwr.lab.data.examples import Domain, DomainCollection, ImageFormat, ImageSet, at_most


class Source(Protocol):
    """Where one domain is read from; a dataclass whose ``repr`` tells all that matters.

    **To add one**, write a frozen dataclass with these two methods and name it in
    :mod:`fedpw_flwr.lab.data.named_sets`.
    """

    def files(self) -> Sequence[Path]:
        """Return the files that decide what is read; those that are missing do no harm."""

    def read(self, wanted: ImageFormat) -> tuple[ImageSet, ImageSet]:
        """Return training and test images.

        Raises
        ------
        FileNotFoundError
            If the set is missing; the message says what to get and where to put it.
        ValueError
            If it is there, but damaged or of another form.
        """


def read_collection(
    sources: Sequence[tuple[str, Source]],
    wanted: ImageFormat,
    *,
    max_test_per_domain: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> DomainCollection:
    """Read domains by name, each from this machine's cache, or from its source and keep it there.

    The errors of :meth:`Source.read` pass through.
    """
    domains = []
    for name, source in sources:
        read = _read_domain(name, source, wanted)
        domains.append(Domain(name, read.train, at_most(read.test, max_test_per_domain)))
    return DomainCollection(tuple(domains), wanted.num_classes, tuple(mean or ()), tuple(std or ()))


def _read_domain(name: str, source: Source, wanted: ImageFormat) -> Domain:
    def key() -> str:
        return collection_key(f"{name} {source!r} {wanted!r}", source.files())

    def build() -> DomainCollection:
        return DomainCollection((Domain(name, *source.read(wanted)),), wanted.num_classes)

    return cached(key, build).domains[0]
