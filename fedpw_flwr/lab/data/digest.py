"""Which pictures these are: a name in a configuration stands for whatever files lie there today."""

from __future__ import annotations

import hashlib

from fedpw_flwr.lab.data.images import DomainCollection

__all__ = ["pictures_digest"]


def pictures_digest(collection: DomainCollection) -> str:
    """Return the SHA-256, in hexadecimal, of all pictures and labels and of how they are scaled.

    Parameters
    ----------
    collection : DomainCollection
        All domains, with everything that their clients may be given.
    """
    digest = hashlib.sha256()
    scale = (collection.num_classes, collection.mean, collection.std)
    digest.update(repr(scale).encode())
    for domain in collection.domains:
        digest.update(f"\n{domain.name}".encode())
        for pictures in (domain.train, domain.test):
            digest.update(repr(tuple(pictures.images.shape)).encode())
            digest.update(pictures.images.contiguous().numpy().data)
            digest.update(pictures.labels.contiguous().numpy().data)
    return digest.hexdigest()
