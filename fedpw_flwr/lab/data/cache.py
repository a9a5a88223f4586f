"""Images decoded once a machine: later runs map them from a file instead of reading sources.

Decoding photographs, unpacking archives and drawing digits take seconds to minutes, and give the
same images every time. Whoever maps a file reads only the pages that it touches, and shares them
with all other processes. The files lie in ``$FEDPW_CACHE_DIR``, else in ``$XDG_CACHE_HOME/fedpw``,
else in ``~/.cache/fedpw``. All of it can be deleted at any time; what nobody used for a month goes
by itself.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import fedpw_flwr
from fedpw_flwr.lab.data.examples import ImageSet

logger = logging.getLogger("flwr")

TrainAndTest = tuple[ImageSet, ImageSet]

_ENDING, _UNFINISHED = ".safetensors", "unfinished-"
_TENSORS = ("train.images", "train.labels", "test.images", "test.labels")
_DAY = 86_400.0
_KEPT_UNUSED = 30 * _DAY


def cache_folder() -> Path:
    """Return the folder of this machine's cache, which need not exist.

    Raises RuntimeError if no variable names it and the user has no home folder.
    """
    own, common = os.environ.get("FEDPW_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser()
    return (Path(common) if common else Path.home() / ".cache") / "fedpw"


def source_key(call: str, files: Iterable[Path]) -> str:
    """Return what images are cached under: another SHA-256 whenever they could be others.

    `call` has every argument that changes the images. `files` are what they are read from, each
    known by its path, size and time of last change; folders and missing ones are left out.
    """
    digest = hashlib.sha256(f"{fedpw_flwr.__version__}\n{_code_digest()}\n{call}\n".encode())
    for file in sorted(map(Path.absolute, files)):
        with suppress(FileNotFoundError):
            status = file.stat()
            if stat.S_ISREG(status.st_mode):
                digest.update(os.fsencode(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()


def cached(key: Callable[[], str], build: Callable[[], TrainAndTest]) -> TrainAndTest:
    """Return images from the cache, or build them and keep them there; errors of `build` pass.

    Any number of processes may do so at once: each writes a file of its own and puts it in place
    whole. Where the cache cannot be written, a warning is logged. Images that come from the cache
    are mapped from its file. `key`, which gives the :func:`source_key`, is asked again after
    building: that may have downloaded the files that it depends on.
    """
    found = _load(key())
    if found is not None:
        return found
    built = build()
    final = key()
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
        save_images(folder / f"{final}{_ENDING}", built)
    except (OSError, RuntimeError, SafetensorError) as error:
        logger.warning(
            "Images are not cached (%s): every run will decode them again. FEDPW_CACHE_DIR names "
            "another folder",
            error,
        )
        return built
    return _load(final) or built


def save_images(file: Path, images: TrainAndTest) -> None:
    """Save images, whole or not at all; OSError or SafetensorError if that cannot be done."""
    tensors = [tensor.contiguous() for one in images for tensor in (one.features, one.labels)]
    with TemporaryDirectory(prefix=_UNFINISHED, dir=file.parent) as folder:
        whole = Path(folder, file.name)
        save_file(dict(zip(_TENSORS, tensors, strict=True)), whole)
        whole.replace(file)


def load_images(file: Path) -> TrainAndTest | None:
    """Map images from a file that may be removed afterwards, but not be written to.

    None if there is no such file, or it is damaged.
    """
    try:
        opened: Any = safe_open(file, framework="pt")
        with opened:
            tensors = [opened.get_tensor(name) for name in _TENSORS]
        return ImageSet(*tensors[:2]), ImageSet(*tensors[2:])
    except (OSError, SafetensorError, ValueError):
        return None


@cache
def _code_digest() -> str:
    """Return which code reads images here: it must not meet what other code has decoded."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _load(key: str) -> TrainAndTest | None:
    try:
        file = cache_folder() / f"{key}{_ENDING}"
    except RuntimeError:
        return None
    loaded = load_images(file)
    # Another user's cache cannot be marked as used, and is read all the same.
    with suppress(OSError):
        os.utime(file)
    return loaded


def _tidy(folder: Path) -> None:
    """Remove what nobody used for long, and what killed processes left."""
    now = time.time()
    for path in folder.iterdir():
        # Another process may be faster, or it is not ours to remove.
        with suppress(OSError):
            age = now - path.stat().st_mtime
            if path.suffix == _ENDING and age > _KEPT_UNUSED:
                path.unlink()
            elif path.name.startswith(_UNFINISHED) and age > _DAY:
                shutil.rmtree(path)
