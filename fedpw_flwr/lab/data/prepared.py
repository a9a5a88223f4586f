"""Images ready for use in one safetensors file that any number of processes map into their memory.

Reading, resizing or drawing images takes seconds. One process does it; every other reads nothing
but the pages that it touches, and shares them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedpw_flwr.lab.data.examples import Domain, DomainCollection, ImageSet

UNFINISHED = "unfinished-"
"""How folders of files that are being written begin."""
_LAYOUT = "layout"


def save_prepared(file: Path, collection: DomainCollection, notes: Mapping[str, str]) -> None:
    """Save images and `notes`, whole or not at all.

    Raises OSError or SafetensorError if the file cannot be written.
    """
    layout = (collection.names, collection.num_classes, collection.mean, collection.std)
    tensors = {}
    for number, domain in enumerate(collection.domains):
        for split, image_set in (("train", domain.train), ("test", domain.test)):
            tensors[f"{number}.{split}.images"] = image_set.features.contiguous()
            tensors[f"{number}.{split}.labels"] = image_set.labels.contiguous()
    with TemporaryDirectory(prefix=UNFINISHED, dir=file.parent) as folder:
        whole = Path(folder, file.name)
        save_file(tensors, whole, metadata={**notes, _LAYOUT: json.dumps(layout)})
        whole.replace(file)


def load_prepared(file: Path, notes: Mapping[str, str]) -> DomainCollection | None:
    """Load what `save_prepared` saved, without reading the images: they are mapped from the file.

    None if there is no such file, it is damaged, or it was not saved with these `notes`. The file
    may be removed afterwards, but not be written to.
    """
    try:
        opened: Any = safe_open(file, framework="pt")
    except (OSError, SafetensorError):
        return None
    with opened:
        found: dict[str, str] = dict(opened.metadata() or {})
        if any(found.get(key) != text for key, text in notes.items()):
            return None
        names, num_classes, mean, std = json.loads(found[_LAYOUT])

        def images(run: str) -> ImageSet:
            return ImageSet(*(opened.get_tensor(f"{run}.{one}") for one in ("images", "labels")))

        domains = tuple(
            Domain(name, images(f"{number}.train"), images(f"{number}.test"))
            for number, name in enumerate(names)
        )
    return DomainCollection(domains, num_classes, tuple(mean), tuple(std))
