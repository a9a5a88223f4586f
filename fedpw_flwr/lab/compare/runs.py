"""Find the runs below some folders or in tar files: those that finished, and by name the others.

A run's folder is one that holds ``metrics.jsonl``, ``failure.json`` (left by a sweep where a run
failed) or ``config.yaml`` beside ``summary.json``. Nothing is left out silently.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from fedpw_flwr.lab.compare.history import ACCURACY, history_of
from fedpw_flwr.lab.config.moved_targets import with_first_targets
from fedpw_flwr.lab.runs.holdings import Holdings
from fedpw_flwr.lab.runs.packed_runs import packed_runs
from fedpw_flwr.lab.runs.records import RunSummary
from fedpw_flwr.lab.runs.run_folder import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    FAILURE_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    RunFolder,
    RunFolderError,
)

__all__ = ["ComparisonError", "FinishedRun", "LeftOutRun", "find_runs"]

Status = Literal["failed", "unfinished", "unreadable", "repeated"]


class ComparisonError(RuntimeError):
    """There is nothing to compare, or not as asked; the message says what to do."""


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run that left a summary.

    Attributes
    ----------
    folder : RunFolder
        Its folder, which may be packed.
    configuration : dict[str, Any]
        What ``config.yaml`` holds.
    summary : RunSummary
        What ``summary.json`` holds.
    history : pd.DataFrame
        The figures of its rounds, as from `history_of`.
    finished_at : float
        When ``summary.json`` was written, in seconds since 1970.
    holdings : Holdings | None (default: None)
        Who holds what; None where the run did not record it.
    """

    folder: RunFolder
    configuration: dict[str, Any]
    summary: RunSummary
    history: pd.DataFrame
    finished_at: float
    holdings: Holdings | None = None

    @property
    def path(self) -> Path:
        """The path of its folder."""
        return self.folder.path

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in the order recorded."""
        names = (key.removeprefix(ACCURACY) for key in self.history if key.startswith(ACCURACY))
        return tuple(names)


@dataclass(frozen=True)
class LeftOutRun:
    """A run that no table holds.

    Attributes
    ----------
    path : Path
        Its folder.
    status : str
        ``"failed"``, ``"unfinished"``, ``"unreadable"``, or ``"repeated"`` by a newer run.
    reason : str
        One line on what happened.
    """

    path: Path
    status: Status
    reason: str


def find_runs(
    paths: Sequence[Path], only: Sequence[str] | None = None
) -> tuple[list[FinishedRun], list[LeftOutRun]]:
    """Read every run in or below the given folders, each one once.

    Folders named ``checkpoints`` and hidden ones are skipped.

    Parameters
    ----------
    paths : Sequence[Path]
        Run folders, folders that hold some at any depth, or tar files of such folders.
    only : Sequence[str] | None (default: None)
        Patterns as a shell has them; a run is read if its folder's name is like one of them. None:
        all are.

    Returns
    -------
    tuple[list[FinishedRun], list[LeftOutRun]]
        In the order of their paths.

    Raises
    ------
    ComparisonError
        If there is nothing at a path.
    RunFolderError
        If a file cannot be read as a tar file.
    """
    folders: dict[Path, RunFolder] = {}
    for path in paths:
        if not path.exists():
            raise ComparisonError(f"there is no folder {path}: check the path of the runs")
        place = path.resolve()
        found: Iterable[RunFolder] = _below(place) if place.is_dir() else packed_runs(place)
        for folder in found:
            wanted = any(fnmatchcase(folder.path.name, pattern) for pattern in only or "*")
            if wanted and _is_run(folder):
                folders.setdefault(folder.path, folder)
    finished: list[FinishedRun] = []
    left_out: list[LeftOutRun] = []
    for path in sorted(folders):
        run = _read(folders[path])
        if isinstance(run, FinishedRun):
            finished.append(run)
        else:
            left_out.append(run)
    return finished, left_out


def _below(path: Path) -> Iterator[RunFolder]:
    for name, folders, _ in os.walk(path):
        folders[:] = [
            folder
            for folder in folders
            if folder != CHECKPOINTS_FOLDER and not folder.startswith(".")
        ]
        yield RunFolder(Path(name))


def _is_run(folder: RunFolder) -> bool:
    finished = folder.has(CONFIG_FILE) and folder.has(SUMMARY_FILE)
    return finished or folder.has(METRICS_FILE) or folder.has(FAILURE_FILE)


def _read(folder: RunFolder) -> FinishedRun | LeftOutRun:
    path = folder.path
    if folder.has(FAILURE_FILE):
        return LeftOutRun(path, "failed", _failure(folder))
    try:
        records = folder.read_rounds()
        if not folder.has(SUMMARY_FILE):
            last = f"the last recorded round is {records[-1].round}" if records else "no round yet"
            return LeftOutRun(path, "unfinished", last)
        if not records:
            return LeftOutRun(path, "unreadable", f"{METRICS_FILE} holds no round")
        return FinishedRun(
            folder=folder,
            configuration=_configuration(folder),
            summary=folder.read_summary(),
            history=history_of(records),
            finished_at=folder.finished_at,
            holdings=folder.read_holdings(),
        )
    except (RunFolderError, OSError) as error:
        return LeftOutRun(path, "unreadable", str(error))


def _configuration(folder: RunFolder) -> dict[str, Any]:
    path = folder.path / CONFIG_FILE
    try:
        loaded = OmegaConf.load(io.BytesIO(folder.content(CONFIG_FILE)))
        configuration = with_first_targets(OmegaConf.to_container(loaded, resolve=True))
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} is missing: nobody can say what was run") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise RunFolderError(f"{path} is not a configuration: {_first_line(error)}") from error
    if not isinstance(loaded, DictConfig) or not isinstance(configuration, dict):
        raise RunFolderError(f"{path} is not a configuration: it has no keys")
    return {str(key): value for key, value in configuration.items()}


def _failure(folder: RunFolder) -> str:
    try:
        failure = json.loads(folder.content(FAILURE_FILE))
        lines = str(failure["error"]).strip().splitlines() or [str(failure["status"])]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{FAILURE_FILE} does not say why"
    # A traceback ends with what went wrong, a message begins with it.
    return lines[-1 if lines[0].startswith("Traceback") else 0].strip()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
