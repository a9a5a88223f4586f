"""Which data these are: a name in a configuration stands for whatever files lie there today."""

from __future__ import annotations

import hashlib

from fedpw_flwr.lab.data.examples import DomainCollection


def pictures_digest(collection: DomainCollection) -> str:
    """Return the SHA-256, in hexadecimal, of all features and labels and of how they are scaled."""
    digest = hashlib.sha256()
    digest.update(repr((collection.num_classes, collection.mean, collection.std)).encode())
    for domain in collection.domains:
        digest.update(f"\n{domain.name}".encode())
        for _, examples in domain.splits():
            digest.update(repr(tuple(examples.features.shape)).encode())
            digest.update(examples.features.contiguous().numpy().data)
            digest.update(examples.labels.contiguous().numpy().data)
    return digest.hexdigest()
