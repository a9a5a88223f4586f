"""Find the runs below some folders: those that finished, and by name all that did not.

A run's folder is one that holds ``metrics.jsonl``, ``failure.json`` (left by a sweep where a run
failed) or ``config.yaml`` beside ``summary.json``. Nothing is left out silently.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from fedpw_flwr.experiment.comparison.history import History
from fedpw_flwr.experiment.holdings import Holdings
from fedpw_flwr.experiment.records import RunSummary
from fedpw_flwr.experiment.run_folder import (
    CHECKPOINTS_FOLDER,
    FAILURE_FILE,
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
    path : Path
        Its folder.
    configuration : dict[str, Any]
        What ``config.yaml`` holds.
    summary : RunSummary
        What ``summary.json`` holds.
    history : History
        The figures of its rounds.
    finished_at : float
        When ``summary.json`` was written, in seconds since 1970.
    holdings : Holdings | None (default: None)
        Who holds what; None where the run did not record it.
    """

    path: Path
    configuration: dict[str, Any]
    summary: RunSummary
    history: History
    finished_at: float
    holdings: Holdings | None = None


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


def find_runs(paths: Sequence[Path]) -> tuple[list[FinishedRun], list[LeftOutRun]]:
    """Read every run in or below the given folders, each one once.

    Folders named ``checkpoints`` and hidden ones are skipped.

    Parameters
    ----------
    paths : Sequence[Path]
        Run folders, or folders that hold some at any depth.

    Returns
    -------
    tuple[list[FinishedRun], list[LeftOutRun]]
        In the order of their paths.

    Raises
    ------
    ComparisonError
        If a path is no folder.
    """
    for path in paths:
        if not path.is_dir():
            raise ComparisonError(f"there is no folder {path}: check the path of the runs")
    folders = sorted({folder for path in paths for folder in _run_folders(path.resolve())})
    finished: list[FinishedRun] = []
    left_out: list[LeftOutRun] = []
    for folder in folders:
        run = _read(folder)
        if isinstance(run, FinishedRun):
            finished.append(run)
        else:
            left_out.append(run)
    return finished, left_out


def _run_folders(path: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(path):
        folders[:] = [
            folder
            for folder in folders
            if folder != CHECKPOINTS_FOLDER and not folder.startswith(".")
        ]
        found = Path(name)
        run = RunFolder(found)
        markers = {run.metrics_file.name, FAILURE_FILE}
        finished_markers = {run.config_file.name, SUMMARY_FILE}
        if markers.intersection(files) or finished_markers.issubset(files):
            yield found


def _read(path: Path) -> FinishedRun | LeftOutRun:
    folder = RunFolder(path)
    if (path / FAILURE_FILE).exists():
        return LeftOutRun(path, "failed", _failure(path / FAILURE_FILE))
    try:
        records = folder.read_rounds()
        if not (path / SUMMARY_FILE).exists():
            last = f"the last recorded round is {records[-1].round}" if records else "no round yet"
            return LeftOutRun(path, "unfinished", last)
        if not records:
            return LeftOutRun(path, "unreadable", f"{folder.metrics_file.name} holds no round")
        return FinishedRun(
            path=path,
            configuration=_configuration(folder.config_file),
            summary=folder.read_summary(),
            history=History.of_rounds(records),
            finished_at=(path / SUMMARY_FILE).stat().st_mtime,
            holdings=folder.read_holdings(),
        )
    except (RunFolderError, OSError) as error:
        return LeftOutRun(path, "unreadable", str(error))


def _configuration(path: Path) -> dict[str, Any]:
    try:
        loaded = OmegaConf.load(path)
        configuration = OmegaConf.to_container(loaded, resolve=True)
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} is missing: nobody can say what was run") from error
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise RunFolderError(f"{path} is not a configuration: {_first_line(error)}") from error
    if not isinstance(loaded, DictConfig) or not isinstance(configuration, dict):
        raise RunFolderError(f"{path} is not a configuration: it has no keys")
    return {str(key): value for key, value in configuration.items()}


def _failure(path: Path) -> str:
    try:
        failure = json.loads(path.read_bytes())
        lines = str(failure["error"]).strip().splitlines() or [str(failure["status"])]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path.name} does not say why"
    # A traceback ends with what went wrong, a message begins with it.
    return lines[-1 if lines[0].startswith("Traceback") else 0].strip()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
