"""Your own images, one compressed NumPy archive a domain.

For data that are yours, and for machines that cannot reach the internet.

``FOLDER/NAME.npz`` holds the domain NAME in four arrays: ``x_train`` and ``x_test``, ``uint8`` of
shape (N, H, W), grey, or (N, H, W, 3), RGB, and ``y_train`` and ``y_test``, integers of shape (N,),
class labels from 0. ``numpy.savez_compressed`` writes such a file.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedpw_flwr.lab.data.conversion import to_uint8_images
from fedpw_flwr.lab.data.examples import DomainCollection, ImageFormat, ImageSet, check_labels
from fedpw_flwr.lab.data.locations import check_archives
from fedpw_flwr.lab.data.source import ImageOptions, read_collection

_FORM = (
    "an archive holds x_train and x_test (uint8, (N, H, W) or (N, H, W, 3)) "
    "and y_train and y_test (integers, (N,))"
)

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")

_MOST_BYTES = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
"""What a byte of an archive can become at most, by the methods that NumPy writes."""


def archives(
    folder: str | Path, domains: Sequence[str], **images: Unpack[ImageOptions]
) -> DomainCollection:
    """Read one ``.npz`` archive a domain, decoded once a machine.

    Parameters
    ----------
    folder : str or Path
        Where the archives lie.
    domains : sequence of str
        Names of the domains, which are the archives' names without ``.npz``, in client order.
    **images
        As of :func:`fedpw_flwr.lab.data.source.read_collection`.

    Raises
    ------
    FileNotFoundError
        If the folder or an archive is missing; the message lists what is there.
    ValueError
        If an archive is damaged, or lacks an array, or one has another dtype, shape or range of
        labels; the message names it.
    """
    check_archives(domains, folder)
    return read_collection([(name, Archive(Path(folder), name)) for name in domains], **images)


@dataclass(frozen=True)
class Archive:
    """The archive ``folder/name.npz``."""

    folder: Path
    name: str

    def files(self) -> list[Path]:
        """Return the archive alone."""
        return [self.folder / f"{self.name}.npz"]

    def read(self, wanted: ImageFormat) -> tuple[ImageSet, ImageSet]:
        """Read training and test images; raises as :func:`archives`."""
        (file,) = self.files()
        arrays = _read_arrays(file)
        return (
            _image_set(file, arrays, "train", wanted),
            _image_set(file, arrays, "test", wanted),
        )


def _read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is not an .npz archive, or is cut short: copy it again")
    try:
        with zipfile.ZipFile(file) as members:
            for member in members.infolist():
                if member.filename.removesuffix(".npy") in _ARRAYS:
                    _check_size(members, member, file)
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files if key in _ARRAYS}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{file} is damaged ({error}): copy it again") from error


def _check_size(members: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path) -> None:
    """Refuse Python objects, and an array larger than its bytes, before room is made for it."""
    name = member.filename.removesuffix(".npy")
    packed = min(member.compress_size, file.stat().st_size)
    if member.file_size > packed * _MOST_BYTES.get(member.compress_type, 0):
        raise ValueError(f"{name} in {file} claims more bytes than it can hold: {_FORM}")
    with members.open(member) as stream:
        try:
            version = npy.read_magic(stream)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(stream)
            length = stream.tell() + math.prod(shape) * dtype.itemsize
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name} in {file} is no array ({error}): {_FORM}") from error
    if dtype.hasobject:
        raise ValueError(f"{name} in {file} holds Python objects: {_FORM}")
    if min(shape, default=0) < 0 or length != member.file_size:
        raise ValueError(
            f"{name} in {file} has {member.file_size} bytes and claims {length}: copy it again"
        )


def _image_set(
    file: Path, arrays: dict[str, NDArray[Any]], split: str, wanted: ImageFormat
) -> ImageSet:
    x, y = f"x_{split}", f"y_{split}"
    missing = [key for key in (x, y) if key not in arrays]
    if missing:
        raise ValueError(
            f"{file} has no {' and no '.join(missing)}, only {sorted(arrays)}: {_FORM}"
        )
    pixels, labels = arrays[x], arrays[y]
    if pixels.dtype != np.uint8:
        raise ValueError(f"{x} in {file} is {pixels.dtype}, not uint8 (0 to 255): {_FORM}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{y} in {file} is {labels.dtype}, not an integer type: {_FORM}")
    if labels.shape != (len(pixels),):
        raise ValueError(
            f"{y} in {file} has shape {labels.shape} for {len(pixels)} images: {_FORM}"
        )
    if len(labels) == 0:
        raise ValueError(f"{x} in {file} is empty: a domain needs at least one image")
    classes = torch.from_numpy(labels.astype(np.int64))
    check_labels(classes, wanted.num_classes, f"{y} in {file}")
    try:
        images = to_uint8_images(pixels, wanted)
    except ValueError as error:
        raise ValueError(f"{x} in {file}: {error}") from error
    return ImageSet(images, classes)
