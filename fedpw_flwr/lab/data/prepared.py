"""Pictures ready for use in one file that any number of processes map into their memory.

Reading, resizing or drawing pictures and dividing them among clients takes seconds, and every
worker of a simulation would do it again. One process does it and saves what clients train on and
what is tested on; the others read nothing but the pages they touch, and share them.

The file is safetensors': for each domain one run of training pictures, in the order of its clients,
its test pictures, and the pictures that its clients keep for testing, in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedpw_flwr.lab.data.images import Domain, DomainCollection, ImageSet, joined
from fedpw_flwr.lab.data.partition import ClientShare

__all__ = ["load_prepared", "save_prepared"]

_LAYOUT = "layout"


def save_prepared(
    file: Path,
    collection: DomainCollection,
    shares: Sequence[ClientShare],
    notes: Mapping[str, str],
) -> None:
    """Save test pictures and clients' shares.

    Parameters
    ----------
    file : Path
        Written whole or not at all.
    collection : DomainCollection
        Of a domain's training pictures only those that clients hold are saved, or all if it has no
        client.
    shares : Sequence[ClientShare]
        Clients 0 to K-1, each of a domain of the collection.
    notes : Mapping[str, str]
        Texts to keep with them.

    Raises
    ------
    ValueError
        If a share names a domain that the collection does not have.
    OSError, SafetensorError
        If the file cannot be written.
    """
    unknown = {share.domain for share in shares} - set(collection.names)
    if unknown:
        raise ValueError(f"clients hold pictures of {sorted(unknown)}, domains of no data set")
    tensors: dict[str, torch.Tensor] = {}
    places: dict[int, tuple[int, int]] = {}
    kept: dict[int, tuple[int, int]] = {}
    for number, domain in enumerate(collection.domains):
        held = [share for share in shares if share.domain == domain.name]
        train = _run([(share.client_id, share.train) for share in held], places) or domain.train
        own = _run([(one.client_id, one.test) for one in held if one.test is not None], kept)
        for split, pictures in (("train", train), ("test", domain.test), ("own", own)):
            if pictures is not None:
                tensors[f"{number}.{split}.images"] = pictures.images.contiguous()
                tensors[f"{number}.{split}.labels"] = pictures.labels.contiguous()
    layout = {
        "domains": collection.names,
        "num_classes": collection.num_classes,
        "mean": collection.mean,
        "std": collection.std,
        "shares": [
            (
                share.client_id,
                collection.names.index(share.domain),
                places[share.client_id],
                kept.get(share.client_id),
            )
            for share in shares
        ],
    }
    temporary = file.with_name(f"{file.name}.tmp")
    save_file(tensors, str(temporary), metadata={**notes, _LAYOUT: json.dumps(layout)})
    temporary.replace(file)


def load_prepared(
    file: Path, notes: Mapping[str, str]
) -> tuple[DomainCollection, tuple[ClientShare, ...], dict[str, str]] | None:
    """Load what `save_prepared` saved, without reading the pictures: they are mapped from the file.

    Parameters
    ----------
    file : Path
        The file; it may be removed afterwards, but not be written to.
    notes : Mapping[str, str]
        What the file must have been saved with.

    Returns
    -------
    tuple[DomainCollection, tuple[ClientShare, ...], dict[str, str]] | None
        Domains, whose training pictures are those that clients train on; shares, which are views
        of what was mapped; all notes. None if there is no such file, it is
        damaged, or its notes say something else.
    """
    if not _is_sound(file):
        return None
    with safe_open(str(file), framework="pt") as opened:
        found: dict[str, str] = dict(opened.metadata() or {})
        if any(found.get(key) != text for key, text in notes.items()):
            return None
        layout: dict[str, Any] = json.loads(found.pop(_LAYOUT))
        domains = tuple(
            Domain(name, *(_pictures(opened, f"{number}.{split}") for split in ("train", "test")))
            for number, name in enumerate(layout["domains"])
        )
        own = {
            number: _pictures(opened, f"{number}.own")
            for number in {number for _, number, _, kept in layout["shares"] if kept is not None}
        }
    collection = DomainCollection(
        domains, layout["num_classes"], tuple(layout["mean"]), tuple(layout["std"])
    )
    shares = tuple(
        ClientShare(
            client,
            domains[number].name,
            train=_slice(domains[number].train, *place),
            test=None if kept is None else _slice(own[number], *kept),
        )
        for client, number, place, kept in layout["shares"]
    )
    return collection, shares, found


def _run(
    sets: Sequence[tuple[int, ImageSet]], places: dict[int, tuple[int, int]]
) -> ImageSet | None:
    """Join clients' pictures and note where each one's begin and end; None where nobody has any."""
    start = 0
    for client, pictures in sets:
        places[client] = (start, start + len(pictures))
        start += len(pictures)
    return joined([pictures for _, pictures in sets]) if sets else None


def _pictures(opened: Any, name: str) -> ImageSet:
    return ImageSet(opened.get_tensor(f"{name}.images"), opened.get_tensor(f"{name}.labels"))


def _slice(pictures: ImageSet, start: int, stop: int) -> ImageSet:
    return ImageSet(pictures.images[start:stop], pictures.labels[start:stop])


def _is_sound(file: Path) -> bool:
    """Return whether a file of this format is there, and as long as it says itself."""
    try:
        with safe_open(str(file), framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False
