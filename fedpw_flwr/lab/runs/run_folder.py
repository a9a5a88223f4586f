"""What one run leaves on disk, and the only place that knows its file names and formats.

Use it on the server to write a run while it trains, and everywhere else (progress display, plots,
``fedpw-evaluate``, a notebook) to read it back, also while it is still being written:

=========================  ====================================================================
``config.yaml``            the resolved configuration
``metrics.jsonl``          one JSON object a line, one line a round; round 0 is the initial model
``summary.json``           the figures a table of runs needs
``model.safetensors``      the global model after the last round
``model_best.safetensors`` the global model of the round with the highest worst-domain accuracy
``command.json``           what the run was composed from, for ``fedpw resume=``
``partition.json``         how many pictures of each class every client holds
``failure.json``           why a run of a sweep failed; gone when it is run again
``checkpoints/``           what it takes to go on, see `fedpw_flwr.checkpoint`
=========================  ====================================================================

``metrics.jsonl`` only grows, a whole line at a time, until a run goes on from a checkpoint. Every
other file is written beside its final place and renamed, so an interrupted run never leaves half a
file where a good one is expected. The JSON is strict: a figure that is not finite is stored as
``null`` and read back as NaN.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from fedpw_flwr.lab.runs.holdings import Holdings
from fedpw_flwr.lab.runs.records import RoundRecord, RunSummary

if TYPE_CHECKING:
    # Importing torch takes seconds, and following a run's progress must not cost that.
    import torch

__all__ = ["ModelFile", "RunFolder", "RunFolderError", "atomic_file"]

ModelFile = Literal["model.safetensors", "model_best.safetensors"]

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
CONFIG_FILE = "config.yaml"
COMMAND_FILE = "command.json"
PARTITION_FILE = "partition.json"
FAILURE_FILE = "failure.json"
CHECKPOINTS_FOLDER = "checkpoints"


class RunFolderError(RuntimeError):
    """A run folder cannot be used as asked; the message says which file and what to do."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Building the object touches nothing, so the same class reads old runs; :meth:`start` makes the
    folder a new run's.

    Parameters
    ----------
    path : Path
        The folder.
    """

    path: Path

    @property
    def metrics_file(self) -> Path:
        """Where the rounds are recorded."""
        return self.path / METRICS_FILE

    @property
    def config_file(self) -> Path:
        """Where the resolved configuration is."""
        return self.path / CONFIG_FILE

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / CHECKPOINTS_FOLDER

    @property
    def finished_at(self) -> float:
        """When ``summary.json`` was written, in seconds since 1970."""
        return (self.path / SUMMARY_FILE).stat().st_mtime

    def has(self, name: str) -> bool:
        """Tell whether a file is there."""
        return (self.path / name).exists()

    def content(self, name: str) -> bytes:
        """Return what a file holds, whether the folder is a run's or not.

        Raises
        ------
        OSError
            If it cannot be read; FileNotFoundError where it is missing.
        """
        return (self.path / name).read_bytes()

    def check_unused(self) -> None:
        """Refuse a folder that cannot take a new run; changes nothing.

        Raises
        ------
        RunFolderError
            If the folder already holds a run, or the path is not a folder.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file, not a folder: choose another output path")
        if self.metrics_file.exists():
            raise RunFolderError(
                f"{self.path} already holds a run ({METRICS_FILE} is there). A new run would mix "
                "its figures with the old one's: choose another output folder, or move the old "
                "one away"
            )

    def start(self, config_name: str = "", overrides: str = "") -> None:
        """Make the folder, with an empty record of rounds, for a new run.

        Parameters
        ----------
        config_name, overrides : str, str
            What it is composed from, for ``command.json``; nothing is written where there is none.

        Raises
        ------
        RunFolderError
            If the folder already holds a run, or cannot be written to.
        """
        self.check_unused()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if config_name:
                # First, so that a run that is killed here can be begun again by resuming it.
                self.write_command(config_name, overrides)
            # Exclusive creation: of two runs sent to the same folder at once, one must lose.
            self.metrics_file.open("x").close()
        except FileExistsError:
            self.check_unused()
            raise
        except OSError as error:
            raise RunFolderError(
                f"cannot write to the output folder {self.path} ({error.strerror}): choose another"
            ) from error

    def go_on(self, after: int | None) -> None:
        """Make the folder a run's again that goes on; rounds after its checkpoint are run again.

        Parameters
        ----------
        after : int | None
            The round of the checkpoint; None where there was none, and all is run again.

        Raises
        ------
        RunFolderError
            If the folder holds no run, or not all the rounds up to the checkpoint's.
        """
        if after is None and (self.path / COMMAND_FILE).is_file():
            # Killed before it had a round, or the file for them.
            self.metrics_file.touch()
        kept = [
            record for record in self.read_rounds() if after is not None and record.round <= after
        ]
        if [record.round for record in kept] != list(range(0 if after is None else after + 1)):
            raise RunFolderError(
                f"{self.metrics_file} lacks rounds before {after}, the checkpoint's: restore the "
                "file, or begin anew"
            )
        lines = (_line(record) for record in kept)
        self._write_text(METRICS_FILE, "".join(lines))
        (self.path / SUMMARY_FILE).unlink(missing_ok=True)

    def write_command(self, config_name: str, overrides: str) -> None:
        """Write ``command.json``: the name of the config, and the overrides in one line."""
        command = {"config-name": config_name, "overrides": overrides}
        text = json.dumps(command, ensure_ascii=False, indent=2)
        self._write_text(COMMAND_FILE, text + "\n")

    def read_command(self) -> tuple[str, str]:
        """Read ``command.json``: the name of the config, and the overrides in one line.

        Raises
        ------
        RunFolderError
            If it is missing (the run never began) or cannot be read.
        """
        content = self._read(COMMAND_FILE)
        try:
            command = json.loads(content)
            return str(command["config-name"]), str(command["overrides"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{self.path / COMMAND_FILE} is not what a run was composed from ({_reason(error)})"
            ) from error

    def write_holdings(self, holdings: Holdings) -> None:
        """Write ``partition.json``."""
        text = json.dumps(holdings.to_json(), ensure_ascii=False)
        self._write_text(PARTITION_FILE, text + "\n")

    def read_holdings(self) -> Holdings | None:
        """Read ``partition.json``; None where it was not written, as by older versions.

        Raises
        ------
        RunFolderError
            If it cannot be read.
        """
        if not self.has(PARTITION_FILE):
            return None
        content = self._read(PARTITION_FILE)
        try:
            return Holdings.from_json(json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"{self.path / PARTITION_FILE} does not say what clients hold ({_reason(error)})"
            ) from error

    def mark_failed(self, status: str, error: str) -> None:
        """Write ``failure.json``: how Flower recorded the end of the run, and why it failed."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"status": status, "error": error}, ensure_ascii=False, indent=2)
        self._write_text(FAILURE_FILE, text + "\n")

    def unmark_failed(self) -> None:
        """Remove ``failure.json``, because the run is run again."""
        (self.path / FAILURE_FILE).unlink(missing_ok=True)

    def append_round(self, record: RoundRecord) -> None:
        """Add one round to ``metrics.jsonl``; on return the line is on disk.

        Parameters
        ----------
        record : RoundRecord
            The round.

        Raises
        ------
        RunFolderError
            If the run was not started in this folder.
        """
        line = _line(record)
        try:
            stream = self.metrics_file.open("r+b")
        except FileNotFoundError as error:
            raise RunFolderError(
                f"{self.metrics_file} is gone, so round {record.round} cannot be recorded: do not "
                "move or clean a run's folder while it trains (a new run begins with start())"
            ) from error
        with stream:
            # A disk that was full for a moment leaves half a line; the next one must not join it.
            complete = stream.read().rfind(b"\n") + 1
            stream.truncate(complete)
            stream.seek(complete)
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())

    def read_rounds(self) -> list[RoundRecord]:
        """Read the rounds recorded so far.

        A last line without its line end is still being written, and left out.

        Returns
        -------
        list[RoundRecord]
            In the order recorded; empty if nothing is recorded yet.

        Raises
        ------
        RunFolderError
            If the folder holds no run, or a complete line cannot be read.
        """
        content = self._read(METRICS_FILE)
        records = []
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):
            try:
                records.append(RoundRecord.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RunFolderError(
                    f"line {number} of {self.metrics_file} is not a round's record "
                    f"({_reason(error)}): restore the file, or delete that line"
                ) from error
        return records

    def write_summary(self, summary: RunSummary) -> None:
        """Write ``summary.json``."""
        text = json.dumps(summary.to_json(), allow_nan=False, ensure_ascii=False, indent=2)
        self._write_text(SUMMARY_FILE, text + "\n")

    def read_summary(self) -> RunSummary:
        """Read ``summary.json``.

        Raises
        ------
        RunFolderError
            If it is missing (the run did not finish) or cannot be read.
        """
        content = self._read(SUMMARY_FILE)
        try:
            return RunSummary.from_json(json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"{self.path / SUMMARY_FILE} is not a run's summary ({_reason(error)})"
            ) from error

    def write_config(self, text: str) -> None:
        """Write the resolved configuration to ``config.yaml``."""
        self._write_text(CONFIG_FILE, text)

    def save_model(
        self,
        state_dict: Mapping[str, torch.Tensor],
        name: ModelFile = "model.safetensors",
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        """Write a model's state, replacing the file of that name only once it is complete.

        Parameters
        ----------
        state_dict : Mapping[str, Tensor]
            Parameters and buffers by name, of any shape, dtype, layout in memory and device. Where
            several share memory (tied weights), each is kept.
        name : str (default: "model.safetensors")
            The file's name.
        metadata : Mapping[str, str] | None (default: None)
            Kept in the file. ``"round"``, where given, is what ``fedpw-evaluate`` compares with.

        Returns
        -------
        Path
            The file written.

        Raises
        ------
        RunFolderError
            If the state cannot be stored, e.g. because a tensor is sparse.
        """
        from safetensors import SafetensorError

        from fedpw_flwr.rounds.checkpoints import save_tensors

        path = self.path / name
        with atomic_file(path) as partial:
            try:
                save_tensors(state_dict, partial, metadata)
            except (SafetensorError, RuntimeError, ValueError) as error:
                raise RunFolderError(
                    f"the model cannot be saved to {path}: {_reason(error)}"
                ) from error
        return path

    def load_model(
        self, name: ModelFile = "model.safetensors"
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Read a model's state and the metadata stored with it.

        Parameters
        ----------
        name : str (default: "model.safetensors")
            The file's name.

        Returns
        -------
        tuple[dict[str, Tensor], dict[str, str]]
            Tensors by name, on the CPU, and the metadata.

        Raises
        ------
        RunFolderError
            If the file is missing, truncated or not a safetensors file.
        """
        from safetensors import SafetensorError, safe_open

        self._check_is_run()
        path = self.path / name
        if not path.is_file():
            raise RunFolderError(f"{path} is missing: the run has saved no such model (yet)")
        try:
            with safe_open(path, framework="pt") as stored:
                # safe_open itself is what offers keys(); it is no dictionary to iterate over.
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
                return tensors, dict(stored.metadata() or {})
        except SafetensorError as error:
            raise RunFolderError(
                f"{path} is truncated or no safetensors file ({error}): copy it again, or repeat "
                "the run"
            ) from error

    def _check_is_run(self) -> None:
        if not self.path.is_dir():
            raise RunFolderError(f"there is no folder {self.path}: check the path of the run")
        if not self.metrics_file.is_file():
            raise RunFolderError(
                f"{self.path} is not a run's folder ({METRICS_FILE} is missing): give the folder "
                f"that holds {METRICS_FILE} and {CONFIG_FILE}"
            )

    def _read(self, name: str) -> bytes:
        self._check_is_run()
        try:
            return self.content(name)
        except FileNotFoundError as error:
            raise RunFolderError(
                f"{self.path / name} is missing: the run has not finished, or it failed"
            ) from error

    def _write_text(self, name: str, text: str) -> None:
        with atomic_file(self.path / name) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")


def _line(record: RoundRecord) -> str:
    return json.dumps(record.to_json(), allow_nan=False, ensure_ascii=False) + "\n"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a path to write to, and move the result to ``path`` only if nothing went wrong.

    Parameters
    ----------
    path : Path
        The final place; a file already there stays until the new one is complete and on disk.

    Yields
    ------
    Path
        A new, hidden path in the same folder.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    try:
        partial.touch(exist_ok=False)
        permissions = partial.stat().st_mode
        yield partial
        # A library may create the file anew, for its owner only; a run is there to be shared.
        partial.chmod(permissions)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"no {error.args[0]!r}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
