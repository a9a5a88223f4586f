"""Images ready for use in one file that any number of processes map into their memory.

Reading, resizing or drawing images and dividing them among clients takes seconds. One process does
it and saves what clients train on and what is tested on; every other reads nothing but the pages it
touches, and shares them.

The file is safetensors': for each domain one run of training images, in the order of its clients,
its test images, and the images that its clients keep for testing, in the same order.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedpw_flwr.lab.data.images import Domain, DomainCollection, ImageSet, joined
from fedpw_flwr.lab.data.partition import ClientShare

__all__ = ["UNFINISHED", "load_prepared", "save_prepared"]

UNFINISHED = "unfinished-"
"""How folders of files that are being written begin."""
_LAYOUT = "layout"


def save_prepared(
    file: Path,
    collection: DomainCollection,
    shares: Sequence[ClientShare],
    notes: Mapping[str, str],
) -> None:
    """Save test images, clients' shares and `notes`, whole or not at all.

    Of a domain's training images only those that clients hold are saved, or all if it has no
    client. Raises ValueError for a share of a domain that is not in the collection, and OSError or
    SafetensorError if the file cannot be written.
    """
    layout = {
        "domains": collection.names,
        "form": (collection.num_classes, collection.mean, collection.std),
        "shares": [
            (
                share.client_id,
                collection.names.index(share.domain),
                len(share.train),
                None if share.test is None else len(share.test),
            )
            for share in shares
        ],
    }
    tensors = {}
    for number, domain in enumerate(collection.domains):
        held = [share for share in shares if share.domain == domain.name]
        own = [share.test for share in held if share.test is not None]
        sets = {"train": domain.train, "test": domain.test}
        if held:
            sets["train"] = joined([share.train for share in held])
        if own:
            sets["own"] = joined(own)
        for split, image_set in sets.items():
            tensors[f"{number}.{split}.images"] = image_set.images.contiguous()
            tensors[f"{number}.{split}.labels"] = image_set.labels.contiguous()
    with TemporaryDirectory(prefix=UNFINISHED, dir=file.parent) as folder:
        whole = Path(folder, file.name)
        save_file(tensors, whole, metadata={**notes, _LAYOUT: json.dumps(layout)})
        whole.replace(file)


def load_prepared(
    file: Path, notes: Mapping[str, str]
) -> tuple[DomainCollection, tuple[ClientShare, ...], dict[str, str]] | None:
    """Load what `save_prepared` saved, without reading the images: they are mapped from the file.

    Returns domains, whose training images are those that clients train on; shares, which are views
    of what was mapped; all notes. None if there is no such file, it is damaged, or it was not saved
    with these `notes`. The file may be removed afterwards, but not be written to.
    """
    try:
        opened: Any = safe_open(file, framework="pt")
    except (OSError, SafetensorError):
        return None
    with opened:
        found: dict[str, str] = dict(opened.metadata() or {})
        if any(found.get(key) != text for key, text in notes.items()):
            return None
        layout: dict[str, Any] = json.loads(found.pop(_LAYOUT))
        runs = {name.rpartition(".")[0] for name in opened.keys()}  # noqa: SIM118
        sets = {
            run: ImageSet(opened.get_tensor(f"{run}.images"), opened.get_tensor(f"{run}.labels"))
            for run in runs
        }
    domains = tuple(
        Domain(name, sets[f"{number}.train"], sets[f"{number}.test"])
        for number, name in enumerate(layout["domains"])
    )
    given: Counter[str] = Counter()

    def next_part(run: str, count: int) -> ImageSet:
        start = given[run]
        given[run] += count
        part = slice(start, start + count)
        return ImageSet(sets[run].images[part], sets[run].labels[part])

    shares = tuple(
        ClientShare(
            client,
            domains[number].name,
            train=next_part(f"{number}.train", count),
            test=None if kept is None else next_part(f"{number}.own", kept),
        )
        for client, number, count, kept in layout["shares"]
    )
    num_classes, mean, std = layout["form"]
    return DomainCollection(domains, num_classes, tuple(mean), tuple(std)), shares, found
