"""Pictures decoded once a machine: later runs map them from a file instead of reading sources.

Decoding photographs, unpacking archives and drawing digits take seconds to minutes, and give the
same pictures every time. The first process that needs them keeps them as uint8 tensors in one file;
whoever comes later, and every process beside it, maps that file into its memory.

The files lie in ``$FEDPW_CACHE_DIR``, else in ``$XDG_CACHE_HOME/fedpw``, else in
``~/.cache/fedpw``. All of it can be deleted at any time; what nobody used for a month goes by
itself.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError

import fedpw_flwr
from fedpw_flwr.lab.data.images import DomainCollection
from fedpw_flwr.lab.data.prepared import load_prepared, save_prepared

__all__ = ["cache_folder", "cached", "collection_key"]

logger = logging.getLogger("flwr")

_ENDING = ".safetensors"
_UNFINISHED = "unfinished-"
_DAY = 86_400.0
_KEPT_UNUSED = 30 * _DAY


def cache_folder() -> Path:
    """Return the folder of this machine's cache, which need not exist.

    Raises
    ------
    RuntimeError
        If no variable names it and the user has no home folder.
    """
    own, common = os.environ.get("FEDPW_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser()
    return (Path(common) if common else Path.home() / ".cache") / "fedpw"


def collection_key(call: str, files: Iterable[Path]) -> str:
    """Return what pictures are cached under: another one whenever they could be others.

    Parameters
    ----------
    call : str
        What is asked for: every argument that changes the pictures.
    files : iterable of Path
        What they are read from; those that are missing, or folders, are left out. A file is known
        by its path, size and time of last change.

    Returns
    -------
    str
        SHA-256 in hexadecimal, of these and of this package's version and code that reads.
    """
    digest = hashlib.sha256(f"{fedpw_flwr.__version__}\n{_code_digest()}\n{call}\n".encode())
    for file in sorted(map(Path.absolute, files)):
        try:
            status = file.stat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode):
            digest.update(os.fsencode(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()


def cached(key: Callable[[], str], build: Callable[[], DomainCollection]) -> DomainCollection:
    """Return pictures from the cache, or build them and keep them there.

    Any number of processes may do so at once: each writes a file of its own and then puts it in
    place whole, so a reader never meets half of one.

    Parameters
    ----------
    key : callable
        Gives the :func:`collection_key`; asked again after building, which may have downloaded the
        files that it depends on.
    build : callable
        Reads, decodes or draws the pictures; its errors pass through.

    Returns
    -------
    DomainCollection
        Mapped from the cache, not to be written to. Where the cache cannot be written, a warning is
        logged and what was built is returned.
    """
    found = _load(key())
    if found is not None:
        return found
    built = build()
    final = key()
    try:
        _save(built, final)
    except (OSError, RuntimeError, SafetensorError) as error:
        logger.warning(
            "Pictures are not cached (%s): every run will decode them again. FEDPW_CACHE_DIR names "
            "another folder",
            error,
        )
        return built
    mapped = _load(final)
    return built if mapped is None else mapped


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
        # A damaged file, whatever of it is; it is built again and replaced.
        return None
    if loaded is None:
        return None
    _mark_as_used(file)
    return loaded[0]


def _save(collection: DomainCollection, key: str) -> None:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    _tidy(folder)
    with TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as own:
        whole = Path(own, key)
        save_prepared(whole, collection, (), {"key": key})
        whole.replace(folder / f"{key}{_ENDING}")


def _mark_as_used(file: Path) -> None:
    try:
        os.utime(file)
    except OSError:
        # Another user's cache, which is read all the same.
        logger.debug("cannot mark %s as used", file)


def _tidy(folder: Path) -> None:
    """Remove what nobody used for long, and what killed processes left."""
    now = time.time()
    for path in folder.iterdir():
        try:
            age = now - path.stat().st_mtime
            if path.suffix == _ENDING and age > _KEPT_UNUSED:
                path.unlink()
            elif path.name.startswith(_UNFINISHED) and age > _DAY:
                shutil.rmtree(path)
        except OSError:
            # Another process was faster, or it is not ours to remove.
            continue
