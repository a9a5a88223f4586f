"""Find the runs below some folders or in tar files: those that finished, and by name the others.

A run's folder is one that holds ``metrics.jsonl``, ``failure.json`` (left by a sweep where a run
failed) or ``config.yaml`` beside ``summary.json``. Nothing is left out silently.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from fedpw_flwr.lab.compare.figures import ACCURACY, history_of
from fedpw_flwr.lab.config.configuration import run_fingerprint
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


class ComparisonError(RuntimeError):
    """There is nothing to compare, or not as asked; the message says what to do."""


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run that left a summary; its folder may be packed."""

    folder: RunFolder
    fingerprint: Mapping[str, Any]  # of its configuration, as from `run_fingerprint`
    summary: RunSummary
    history: pd.DataFrame  # as from `history_of`
    rounds: int  # that it was to have: those it had, unless it was stopped early
    holdings: Holdings | None = None  # None where the run did not record who holds what

    @property
    def path(self) -> Path:
        """The path of its folder."""
        return self.folder.path

    def group(self, name: str) -> Mapping[str, Any]:
        """Return a group of the configuration, empty where there is none."""
        content = self.fingerprint.get(name)
        return content if isinstance(content, Mapping) else {}

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in the order recorded."""
        keys = (key for key in self.history if key.startswith(ACCURACY))
        return tuple(key.removeprefix(ACCURACY) for key in keys)


@dataclass(frozen=True)
class LeftOutRun:
    """A run that no table holds, and why: one word, and one line on what happened."""

    path: Path
    status: Literal["failed", "unfinished", "unreadable", "repeated"]
    reason: str


def find_runs(
    paths: Sequence[Path], only: Sequence[str] | None = None
) -> tuple[list[FinishedRun], list[LeftOutRun]]:
    """Read every run in or below folders, or in tar files of runs, each one once, by their paths.

    Folders named ``checkpoints`` and hidden ones are skipped; of the others those whose name is
    like one of the patterns in `only`, where there are any, are read. Raises ComparisonError if
    there is nothing at a path, and RunFolderError if a file cannot be read as a tar file.
    """
    folders: dict[Path, RunFolder] = {}
    for path in paths:
        if not path.exists():
            raise ComparisonError(f"there is no folder {path}: check the path of the runs")
        whole = path.resolve()
        found: Iterable[RunFolder] = _below(whole) if path.is_dir() else packed_runs(whole)
        for folder in found:
            if any(fnmatchcase(folder.path.name, pattern) for pattern in only or "*"):
                folders.setdefault(folder.path, folder)
    runs = [_read(folders[path]) for path in sorted(folders)]
    finished = [run for run in runs if isinstance(run, FinishedRun)]
    return finished, [run for run in runs if isinstance(run, LeftOutRun)]


def _below(path: Path) -> Iterator[RunFolder]:
    for name, folders, _ in os.walk(path):
        folders[:] = [each for each in folders if each[0] != "." and each != CHECKPOINTS_FOLDER]
        yield RunFolder(Path(name))


def _read(folder: RunFolder) -> FinishedRun | LeftOutRun | None:
    """Read a run; None where the folder is no run's."""
    path, summarised = folder.path, folder.has(SUMMARY_FILE)
    if folder.has(FAILURE_FILE):
        return LeftOutRun(path, "failed", _failure(folder))
    if not folder.has(METRICS_FILE) and not (summarised and folder.has(CONFIG_FILE)):
        return None
    try:
        records = folder.read_rounds()
        if not summarised:
            last = f"the last recorded round is {records[-1].round}" if records else "no round yet"
            return LeftOutRun(path, "unfinished", last)
        if not records:
            return LeftOutRun(path, "unreadable", f"{METRICS_FILE} holds no round")
        configuration, summary = folder.read_config(), folder.read_summary()
        fingerprint = run_fingerprint(configuration)
        history, holdings = history_of(records), folder.read_holdings()
        rounds = summary.rounds if summary.stopped is None else int(configuration.rounds)
        return FinishedRun(folder, fingerprint, summary, history, rounds, holdings)
    except (RunFolderError, OSError) as error:
        return LeftOutRun(path, "unreadable", str(error))


def _failure(folder: RunFolder) -> str:
    try:
        failure = json.loads(folder.content(FAILURE_FILE))
        lines = str(failure["error"]).strip().splitlines() or [str(failure["status"])]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{FAILURE_FILE} does not say why"
    # A traceback ends with what went wrong, a message begins with it.
    return lines[-1 if lines[0].startswith("Traceback") else 0].strip()
