"""A folder of checkpoints, one folder a round, which are there whole or not at all.

=====================  ==========================================================================
``round-000012/``      the state after round 12, the newest being the one with the highest number
``model.safetensors``  the global model
``state.safetensors``  tensors of the state: consensus sets, moments, random state
``state.json``         all the rest, and the sizes and SHA-256 of the other two
=====================  ==========================================================================

A checkpoint is written under another name, flushed to disk, renamed. What is read is checked
against its digests first; where the newest does not pass, the one before it is taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

logger = logging.getLogger("flwr")

FORMAT = 1
MODEL_FILE = "model.safetensors"
TENSORS_FILE = "state.safetensors"
STATE_FILE = "state.json"

_NAME = re.compile(r"round-(\d{6,})")
_PARTIAL = ".partial"
_LOCK, _OWNER = ".lock", ".process"
_RESERVED = "__metadata__"

_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)
"""What reading a file that was damaged, or is something else, may raise."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read or gone on from; the message says what to do."""


class _OtherFormatError(CheckpointError):
    """A checkpoint is intact, and of a format that this version does not know."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a run needs to go on after a round; 0 is before the first.

    `model` holds the global model's arrays, in their order, on the CPU; `state` everything else
    that JSON can hold, also floats that are infinite or NaN; `tensors` what is better kept as
    tensors. A run that goes on from it must have the same `fingerprint` as the one that wrote it.
    """

    round: int
    model: Mapping[str, Tensor]
    state: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    fingerprint: Mapping[str, Any] = field(default_factory=dict)


class CheckpointStore:
    """A folder of checkpoints.

    Parameters
    ----------
    folder : Path | str
        The folder; made when a run begins.
    every : int (default: 1)
        Rounds between two checkpoints. The last round of a run always has one.
    keep : int (default: 3)
        How many are kept; more than one, because a disk may damage the newest.

    Raises
    ------
    ValueError
        If a number is not positive.
    """

    def __init__(self, folder: Path | str, *, every: int = 1, keep: int = 3) -> None:
        for name, number in (("every", every), ("keep", keep)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a positive integer, got {number!r}")
        self.folder = Path(folder).absolute()
        self.every = every
        self.keep = keep

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the folder from other processes; the lock ends with this process at the latest.

        Raises
        ------
        CheckpointError
            If a run that goes on elsewhere writes to it, or it cannot be made.
        """
        owner = self.folder / _OWNER
        lock = FileLock(self.folder / _LOCK, blocking=False)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / _LOCK).touch()
        except OSError as error:
            raise CheckpointError(
                f"{self.folder} cannot be written to ({error.strerror}): choose another folder"
            ) from error
        try:
            lock.acquire()
        except Timeout as error:
            known = owner.read_text().strip() if owner.exists() else "unknown"
            raise CheckpointError(
                f"process {known} writes checkpoints to {self.folder}: wait until its run has "
                "ended, or stop it"
            ) from error
        except (NotImplementedError, OSError) as error:
            # A file system without locks, such as some in a network.
            logger.warning("%s cannot be locked (%s): start one run at a time", self.folder, error)
        try:
            owner.write_text(f"{os.getpid()}\n")
            yield
        finally:
            lock.release()

    def is_due(self, server_round: int, last_round: int) -> bool:
        """Return whether a round is followed by a checkpoint."""
        return server_round % self.every == 0 or server_round == last_round

    def rounds(self) -> list[int]:
        """Return the rounds that have a checkpoint, intact or not, the newest first."""
        found = (_NAME.fullmatch(path.name) for path in self._folders())
        return sorted((int(name[1]) for name in found if name), reverse=True)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, remove those too old to be kept; return its folder.

        Raises
        ------
        CheckpointError
            If it cannot be written; what was there before still is.
        """
        folder = self._folder_of(checkpoint.round)
        partial = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}{_PARTIAL}")
        try:
            partial.mkdir(parents=True)
            save_tensors(checkpoint.model, partial / MODEL_FILE)
            save_tensors(checkpoint.tensors, partial / TENSORS_FILE)
            _write_state(checkpoint, partial)
            _flush(partial)
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
            _flush(self.folder)
        except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint of round {checkpoint.round} cannot be written to {self.folder}: "
                f"{error}"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._remove_old(checkpoint.round)
        return folder

    def newest(self) -> Checkpoint | None:
        """Read the newest checkpoint that is intact; None where there is none at all.

        Raises
        ------
        CheckpointError
            If there are checkpoints, and all are damaged, or the newest intact one was written by
            another version.
        """
        damaged = []
        for server_round in self.rounds():
            try:
                return self.load(server_round)
            except _OtherFormatError:
                raise
            except CheckpointError as error:
                logger.warning("%s; taking the one before it", error)
                damaged.append(str(error))
        if damaged:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is intact: restore one from a backup, or begin "
                f"anew in another folder. The newest: {damaged[0]}"
            )
        return None

    def load(self, server_round: int) -> Checkpoint:
        """Read the checkpoint of a round.

        Raises
        ------
        CheckpointError
            If it is missing, torn or not a checkpoint of this version.
        """
        folder = self._folder_of(server_round)
        try:
            content = _read_state(folder)
            for name in (MODEL_FILE, TENSORS_FILE):
                if _digest(folder / name) != content["files"][name]:
                    raise ValueError(f"{name} has not the size and SHA-256 that were written")
            model = load_file(folder / MODEL_FILE)
            return Checkpoint(
                round=content["round"],
                model={name: model[name] for name in content["arrays"]},
                state=content["state"],
                tensors=load_file(folder / TENSORS_FILE),
                fingerprint=content["fingerprint"],
            )
        except _OtherFormatError:
            raise
        except _DAMAGE as error:
            raise CheckpointError(
                f"the checkpoint {folder} is not intact ({type(error).__name__}: {error})"
            ) from error

    def _folder_of(self, server_round: int) -> Path:
        return self.folder / f"round-{server_round:06}"

    def _remove_old(self, newest: int) -> None:
        """Remove what is too old, later rounds of a run that was gone back on, and torn writes."""
        rounds = self.rounds()
        kept = [number for number in rounds if number <= newest][: self.keep]
        for number in set(rounds) - set(kept):
            shutil.rmtree(self._folder_of(number), ignore_errors=True)
        for path in self._folders():
            if path.name.startswith(".round-") and path.name.endswith(_PARTIAL):
                shutil.rmtree(path, ignore_errors=True)

    def _folders(self) -> Iterator[Path]:
        # Not by glob, which takes a folder that cannot be read for an empty one.
        return self.folder.iterdir() if self.folder.is_dir() else iter(())


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name what differs between two fingerprints, as "beta: 0.3 in the checkpoint, 0.4 now"."""
    # As they look after they were written and read.
    saved, now = _encoded(saved), _encoded(now)
    found = []
    for key in sorted({*saved, *now}):
        name = f"{prefix}{key}"
        one, other = saved.get(key), now.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{name}.")
        elif key not in saved:
            found.append(f"{name}: not in the checkpoint, {other!r} now")
        elif key not in now:
            found.append(f"{name}: {one!r} in the checkpoint, not there now")
        elif one != other:
            found.append(f"{name}: {one!r} in the checkpoint, {other!r} now")
    return found


def save_tensors(
    tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file, each whole, also where several share memory.

    They may be of any device and layout: tied weights, or views of each other. Raises a ValueError
    if one has a name that safetensors keeps for itself, or a layout that it does not know; OSError
    or SafetensorError if the file cannot be written.
    """
    if _RESERVED in tensors:
        raise ValueError(f"an array is named {_RESERVED}, which safetensors keeps for itself")
    # Copies where two names share memory, which safetensors refuses.
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        pointer = own.untyped_storage().data_ptr()
        apart[name] = own.clone() if pointer in seen else own
        seen.add(pointer)
    save_file(apart, file, metadata=None if metadata is None else dict(metadata))


def _write_state(checkpoint: Checkpoint, folder: Path) -> None:
    content = {
        "format": FORMAT,
        "round": checkpoint.round,
        "arrays": list(checkpoint.model),
        "files": {name: _digest(folder / name) for name in (MODEL_FILE, TENSORS_FILE)},
        "fingerprint": _encoded(checkpoint.fingerprint),
        "state": _encoded(checkpoint.state),
    }
    content["sha256"] = _sha256(content)
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    (folder / STATE_FILE).write_text(text + "\n", encoding="utf-8")


def _read_state(folder: Path) -> dict[str, Any]:
    text = (folder / STATE_FILE).read_text(encoding="utf-8")
    content = json.loads(text, object_hook=_decoded)
    stated = content.pop("sha256")
    if stated != _sha256(_encoded(content)):
        raise ValueError(f"{STATE_FILE} does not agree with its SHA-256")
    if content["format"] != FORMAT:
        raise _OtherFormatError(
            f"the checkpoint {folder} has the format {content['format']}, this version of "
            f"fedpw-flwr reads {FORMAT}: go on with the version that wrote it"
        )
    return dict(content)


def _sha256(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _digest(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": sha256}


def _flush(folder: Path) -> None:
    """Bring a folder and the files in it to disk."""
    for path in (*(path for path in folder.iterdir() if path.is_file()), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_NOT_FINITE, _BYTES, _MAPPING = "not-finite", "bytes-hex", "mapping"
_MARKS = ({_NOT_FINITE}, {_BYTES}, {_MAPPING})


def _encoded(value: Any) -> Any:
    """Write in a way that JSON knows what it does not; tuples become lists."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        # A number of NumPy or PyTorch.
        value = value.item()
    if isinstance(value, bytes):
        return {_BYTES: value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return {_NOT_FINITE: str(value)}
    if isinstance(value, Mapping):
        encoded = {str(key): _encoded(entry) for key, entry in value.items()}
        # A mapping of somebody else's that looks like a mark.
        return {_MAPPING: list(encoded.items())} if encoded.keys() in _MARKS else encoded
    if isinstance(value, list | tuple):
        return [_encoded(entry) for entry in value]
    return value


def _decoded(entries: dict[str, Any]) -> Any:
    """Return what an object of the JSON stands for."""
    if entries.keys() == {_NOT_FINITE}:
        return float(entries[_NOT_FINITE])
    if entries.keys() == {_BYTES}:
        return bytes.fromhex(entries[_BYTES])
    if entries.keys() == {_MAPPING}:
        return dict(entries[_MAPPING])
    return entries
