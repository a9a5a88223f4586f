"""The runs of a sweep (`fedpw -m`): which there are, which are done, and what becomes of the rest.

Runs are told apart by what decides their results, not by a folder's name or their number in the
sweep: the same command, or another one that shares some of its runs, runs only what is missing. A
run that was interrupted goes on; one that failed is marked, and tried again the next time. Two
sweeps may share a folder: what one of them runs at the moment, the other leaves alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from filelock import FileLock, Timeout
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedpw_flwr.lab.config.configuration import (
    ConfigurationError,
    resolved_yaml,
    run_fingerprint,
    stop_settings,
)
from fedpw_flwr.lab.runs.run_folder import (
    CHECKPOINTS_FOLDER,
    FAILURE_FILE,
    SUMMARY_FILE,
    RunFolder,
    RunFolderError,
)

Ending = Literal["done before", "done", "failed", "run by another sweep"]

LOCK_FILE = ".lock"
_LONGEST_NAME = 100  # characters


def results_fingerprint(configuration: DictConfig) -> str:
    """Return the SHA-256 of all that decides a run's results, its end included."""
    content = {**run_fingerprint(configuration), "rounds": int(configuration.rounds)}
    if (stop := stop_settings(configuration)) is not None:
        content["stop"] = stop
    return hashlib.sha256(json.dumps(_plain(content), sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Write numbers in one way: ``beta=1`` and ``beta=1.0`` are the same run."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def run_name(configuration: DictConfig) -> str:
    """Return the folder's name of a run: readable, and one for each fingerprint."""
    groups = [str(configuration[group].get("name", "")) for group in ("dataset", "partition")]
    labels = [*dict.fromkeys(groups), str(configuration.strategy.name)]
    readable = "_".join(label for label in labels if label)[:_LONGEST_NAME]
    safe = "".join(sign if sign.isalnum() or sign in "_-." else "-" for sign in readable)
    return f"{safe}_seed{configuration.seed}_{results_fingerprint(configuration)[:8]}"


@dataclass
class Sweep:
    """What became of the runs of one command, and how far it is.

    `folder` holds its runs and those of other sweeps; `total` is the number of its runs.
    """

    folder: Path
    console: Console
    total: int = 0
    endings: list[tuple[Path, Ending, float]] = field(default_factory=list)
    _digests: dict[str, str | None] = field(default_factory=dict)
    _begun: int = 0
    _since: float = field(default_factory=time.monotonic)
    _lock: Lock = field(default_factory=Lock)

    @cached_property
    def _finished(self) -> dict[str, list[Path]]:
        """The finished runs below the folder by fingerprint, the newest last."""
        found: dict[str, list[Path]] = {}
        files = [
            one for one in self.folder.rglob(SUMMARY_FILE) if CHECKPOINTS_FOLDER not in one.parts
        ]
        for run in [file.parent for file in sorted(files, key=lambda file: file.stat().st_mtime)]:
            fingerprint = _fingerprint_of(run)
            if fingerprint is not None and _is_finished(run):
                found.setdefault(fingerprint, []).append(run)
        return found

    def finished(self, configuration: DictConfig) -> Path | None:
        """Return the folder of a finished run with the same results; None where there is none."""
        wanted, folder = results_fingerprint(configuration), self.folder / run_name(configuration)
        with self._lock:
            found = list(self._finished.get(wanted, []))
        if _fingerprint_of(folder) == wanted and _is_finished(folder):
            # Another sweep may have ended it since.
            found.append(folder)
        digest = self._data_digest(configuration) if found else None
        return next((run for run in reversed(found) if _may_be_of(run, digest)), None)

    def _data_digest(self, configuration: DictConfig) -> str | None:
        """Return the digest of a run's images; None where they cannot be read."""
        # Not at the top: PyTorch takes seconds, and the command has to start before it is needed.
        from fedpw_flwr.lab.experiment import build_data

        key = resolved_yaml(configuration.dataset)
        if configuration.dataset.get("seed", 0) is None:
            # The run's seed takes its place.
            key += str(configuration.seed)
        if key not in self._digests:
            digest = None
            # What is wrong with them is said where the run is to start.
            with suppress(ConfigurationError):
                digest = build_data(configuration).digest()
            # Only now: another thread would take what is not known yet for unreadable data.
            self._digests[key] = digest
        return self._digests[key]

    @contextmanager
    def claim(self, configuration: DictConfig) -> Iterator[RunFolder | None]:
        """Hold a run that is not finished; yields its folder, None where another process has it."""
        folder = self._folder_of(configuration)
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(FileLock(folder / LOCK_FILE).acquire(blocking=False))
            except Timeout:
                yield None
                return
            yield RunFolder(folder)

    def _folder_of(self, configuration: DictConfig) -> Path:
        """Return the run's folder: not one in which a run was made longer, and is another since."""
        name, wanted = run_name(configuration), results_fingerprint(configuration)
        names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        return next(
            folder
            for folder in (self.folder / name for name in names)
            if (fingerprint := _fingerprint_of(folder)) is None
            or (fingerprint == wanted and _may_be_of(folder, self._data_digest(configuration)))
        )

    def announce(self, name: str) -> None:
        """Tell which run begins, how the others went, and how long the rest may take."""
        with self._lock:
            self._begun += 1
            number = self._begun + self.count("done before", "run by another sweep")
        said = f"[bold]{escape(name)}[/]: run {number} of {self.total}{self._rest()}"
        self.console.print(said, highlight=False, soft_wrap=True)

    def standing(self) -> str:
        """Return in a line how many runs are done, and how long the rest may take."""
        return f"{self.count('done')} of {self.total} runs done{self._rest()}"

    def _rest(self) -> str:
        """Return how many runs were done before, or failed, and how long the others may take."""
        said = [
            f"{n} {ending}" for ending in ("done before", "failed") if (n := self.count(ending))
        ]
        done, left = self.count("done"), self.total - len(self.endings)
        if done and left > 0:
            # From the first one's start on, with as many runs at a time as there were.
            seconds = (time.monotonic() - self._since) / done * left
            said.append(f"about {timedelta(seconds=round(seconds))} left")
        return "".join(f", {one}" for one in said)

    def ended(self, folder: Path, ending: Ending, seconds: float = 0.0) -> None:
        """Note how a run ended."""
        self.endings.append((folder, ending, seconds))

    def look_again(self) -> None:
        """See which of the runs that other sweeps had in hand are finished by now."""
        for number, (folder, ending, took) in enumerate(self.endings):
            if ending == "run by another sweep" and _is_finished(folder):
                self.endings[number] = (folder, "done before", took)

    def runs(self) -> list[Path]:
        """Return the folders of its runs, those that failed and are not finished among them."""
        return [folder for folder, _, _ in self.endings if folder.is_dir()]

    @property
    def comparison(self) -> Path:
        """The folder of its table and plots: the same for the same runs, in whatever order."""
        names = sorted({folder.name for folder, _, _ in self.endings})
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
        return self.folder / f"comparison-{digest[:8]}"

    def count(self, *endings: Ending) -> int:
        """Return how many runs ended in one of these ways."""
        return sum(ending in endings for _, ending, _ in self.endings)

    def print_endings(self) -> None:
        """Print what became of each run."""
        table = Table(title=f"{len(self.endings)} runs in {self.folder}")
        table.add_column("run")
        table.add_column("")
        table.add_column("seconds", justify="right")
        for folder, ending, seconds in self.endings:
            style = {"failed": "bold red", "run by another sweep": "yellow"}.get(ending, "")
            table.add_row(
                escape(folder.name),
                f"[{style}]{ending}[/]" if style else ending,
                f"{seconds:.0f}" if seconds else "",
            )
        self.console.print(table)


def _may_be_of(run: Path, digest: str | None) -> bool:
    """Return whether a run may be one on images of this digest: nothing says that it is not."""
    try:
        holdings = RunFolder(run).read_holdings()
    except RunFolderError:
        return True
    known = None if holdings is None else holdings.data_digest
    return None in (known, digest) or known == digest


def _is_finished(run: Path) -> bool:
    """Return whether a run ended, and did not fail after its summary, as where plots are drawn."""
    return (run / SUMMARY_FILE).is_file() and not (run / FAILURE_FILE).exists()


def _fingerprint_of(run: Path) -> str | None:
    """Return the fingerprint of the configuration in a folder; None where there is none to read."""
    try:
        return results_fingerprint(RunFolder(run).read_config())
    except (RunFolderError, OSError, OmegaConfBaseException, ValueError, TypeError):
        # No run of this version; it can be none of the sweep's.
        return None
