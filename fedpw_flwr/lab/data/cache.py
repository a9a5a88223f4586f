"""Images decoded once a machine: later runs map them from a file instead of reading sources.

Decoding photographs, unpacking archives and drawing digits take seconds to minutes, and give the
same images every time. The files lie in ``$FEDPW_CACHE_DIR``, else in ``$XDG_CACHE_HOME/fedpw``,
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

from safetensors import SafetensorError

import fedpw_flwr
from fedpw_flwr.lab.data.examples import DomainCollection
from fedpw_flwr.lab.data.prepared import UNFINISHED, load_prepared, save_prepared

logger = logging.getLogger("flwr")

_ENDING = ".safetensors"
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


def collection_key(call: str, files: Iterable[Path]) -> str:
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


def cached(key: Callable[[], str], build: Callable[[], DomainCollection]) -> DomainCollection:
    """Return images from the cache, or build them and keep them there; errors of `build` pass.

    Any number of processes may do so at once: each writes a file of its own and puts it in place
    whole. Where the cache cannot be written, a warning is logged. Images that come from the cache
    are mapped from its file. `key`, which gives the :func:`collection_key`, is asked again after
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
        save_prepared(folder / f"{final}{_ENDING}", built, {"key": final})
    except (OSError, RuntimeError, SafetensorError) as error:
        logger.warning(
            "Images are not cached (%s): every run will decode them again. FEDPW_CACHE_DIR names "
            "another folder",
            error,
        )
        return built
    return _load(final) or built


@cache
def _code_digest() -> str:
    """Return which code reads images here: it must not meet what other code has decoded."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _load(key: str) -> DomainCollection | None:
    try:
        file = cache_folder() / f"{key}{_ENDING}"
        loaded = load_prepared(file, {"key": key})
    except (OSError, RuntimeError, SafetensorError, ValueError, KeyError, TypeError):
        # Damaged, whatever of it is: it is built again and replaced.
        return None
    if loaded is None:
        return None
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
            elif path.name.startswith(UNFINISHED) and age > _DAY:
                shutil.rmtree(path)
