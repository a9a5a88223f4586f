"""Image sets of the Hugging Face hub by name, or a folder in the hub's layout.

flwr-datasets loads them, as Flower's own examples do. Where a column says which domain an image is
of (as ``domain`` in ``flwrlabs/pacs``), each domain has clients of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch

from fedpw_flwr.lab.data.examples import DomainCollection, ImageFormat, ImageSet, check_labels
from fedpw_flwr.lab.data.image_folders import divided, squared
from fedpw_flwr.lab.data.source import ImageOptions, read_collection

if TYPE_CHECKING:
    from datasets import Dataset


def huggingface(
    domains: Sequence[str],
    path: str | None = None,
    *,
    folder: str | Path | None = None,
    revision: str | None = None,
    subset: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    domain_column: str | None = None,
    train_split: str = "train",
    test_split: str | None = "test",
    test_share: float = 0.2,
    **images: Unpack[ImageOptions],
) -> DomainCollection:
    """Read a set of labelled images, downloaded once and decoded once a machine.

    Parameters
    ----------
    domains : sequence of str
        Without `domain_column` one name, for plots; with it the values that clients are of, in
        client order.
    path : str or None (default: None)
        Name on the hub (``ylecun/mnist``). A set is downloaded once: what changes on the hub later
        is not seen.
    folder : str, Path or None (default: None)
        In its place, a folder in the hub's layout.
    revision : str or None (default: None)
        Commit or tag of a set on the hub.
    subset : str or None (default: None)
        Configuration of the set, where it has several.
    image_column, label_column : str (default: "image", "label")
        Columns of images and of classes. Classes that are texts are numbered in alphabetical order.
    domain_column : str or None (default: None)
        Column of the domain.
    train_split, test_split : str (default: "train", "test")
        Splits of the set. Where `test_split` is None, `test_share` of each class of each domain is
        kept for testing: the same images in every run.
    test_share : float (default: 0.2)
        See `test_split`.
    **images
        As of :func:`fedpw_flwr.lab.data.source.read_collection`.

    Raises
    ------
    FileNotFoundError
        If the set cannot be loaded.
    ValueError
        If a split, a column or a domain is not there, or a column is of another kind; the message
        lists what there is.
    """
    if (path is None) == (folder is None):
        raise ValueError("give dataset.path, a name on the hub, or dataset.folder: one of them")
    where = str(path if folder is None else folder)
    if domain_column is None and len(domains) != 1:
        raise ValueError(
            f"dataset.domains has {len(domains)} names: give one, or say in dataset.domain_column "
            "which column has them"
        )
    options = (where, revision, subset, image_column, label_column, domain_column)
    splits = (train_split, test_split, test_share)
    sources = [(name, HuggingFaceSet(name, *options, *splits)) for name in domains]
    return read_collection(sources, **images)


@dataclass(frozen=True)
class HuggingFaceSet:
    """One domain of a set; the fields are the parameters of :func:`huggingface`."""

    domain: str
    path: str
    revision: str | None
    subset: str | None
    image_column: str
    label_column: str
    domain_column: str | None
    train_split: str
    test_split: str | None
    test_share: float

    def files(self) -> list[Path]:
        """Return the files of a folder; of a set on the hub none."""
        return list(Path(self.path).rglob("*")) if Path(self.path).is_dir() else []

    def read(self, wanted: ImageFormat) -> tuple[ImageSet, ImageSet]:
        """Read training and test images; raises as :func:`huggingface`."""
        train = self._images(self.train_split, wanted)
        if self.test_split is None:
            return divided(train, self.test_share, f"{self.path} ({self.domain})")
        return train, self._images(self.test_split, wanted)

    def _images(self, split: str, wanted: ImageFormat) -> ImageSet:
        table = _loaded(self.path, self.revision, self.subset, split)
        columns = [self.image_column, self.label_column]
        if self.domain_column is not None:
            columns.append(self.domain_column)
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise ValueError(
                f"{self.path} has no column {', '.join(missing)}: set dataset.image_column, "
                f"label_column or domain_column; there are {', '.join(table.column_names)}"
            )
        if self.domain_column is not None:
            table = self._of_domain(table)
        labels = self._labels(table)
        check_labels(labels, wanted.num_classes, self.path)
        if not hasattr(table.features[self.image_column], "decode_example"):
            raise ValueError(
                f"column {self.image_column} of {self.path} holds no images: set "
                f"dataset.image_column; there are {', '.join(table.column_names)}"
            )
        pixels = np.stack([squared(row, wanted) for row in table[self.image_column]])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        return ImageSet(images, labels)

    def _labels(self, table: Dataset) -> torch.Tensor:
        """Return classes by number; texts by their rank among all that are trained on."""
        values: list[Any] = table[self.label_column][:]
        if isinstance(values[0], str):
            known = _loaded(self.path, self.revision, self.subset, self.train_split)
            numbers = {name: at for at, name in enumerate(sorted(set(known[self.label_column])))}
            values = [numbers.get(value) for value in values]
        if not all(isinstance(value, int) and value >= 0 for value in values):
            raise ValueError(
                f"column {self.label_column} of {self.path} holds no classes, or some that nobody "
                f"trains on: set dataset.label_column; there are {', '.join(table.column_names)}"
            )
        return torch.tensor(values, dtype=torch.int64)

    def _of_domain(self, table: Dataset) -> Dataset:
        assert self.domain_column is not None
        names = _texts(table, self.domain_column)
        rows = [row for row, name in enumerate(names) if name == self.domain]
        if not rows:
            raise ValueError(
                f"no image of {self.path} is of {self.domain!r}: dataset.domain_column="
                f"{self.domain_column} has {', '.join(sorted(set(names)))}"
            )
        return table.select(rows)


@lru_cache(maxsize=2)
def _loaded(path: str, revision: str | None, subset: str | None, split: str) -> Dataset:
    # Takes seconds to import: only a process that reads such sets pays for it.
    from flwr_datasets import FederatedDataset

    known = {} if revision is None else {"revision": revision}
    federated = FederatedDataset(
        dataset=path, subset=subset, partitioners={}, shuffle=False, **known
    )
    try:
        return federated.load_split(split)
    except (OSError, KeyError, ValueError) as error:
        raise FileNotFoundError(
            f"{path} cannot be loaded ({error}): check dataset.path, its name on the hub, or "
            "dataset.folder; dataset.subset, the splits and the connection"
        ) from error


def _texts(table: Dataset, column: str) -> list[str]:
    """Return a column's values as texts: those of classes by their names."""
    names = getattr(table.features[column], "names", None)
    values: list[Any] = table[column][:]
    return [str(value) if names is None else names[value] for value in values]
