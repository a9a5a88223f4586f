"""What one run leaves on disk, and the only place that knows its file names and formats.

Use it on the server to write a run while it trains, and everywhere else (progress display, plots,
``fedpw-evaluate``, a notebook) to read it back, also while it is still being written:

=========================  ====================================================================
``config.yaml``            the resolved configuration, which ``fedpw resume=`` goes on with
``metrics.jsonl``          one JSON object a line, one line a round; round 0 is the initial model
``summary.json``           the figures a table of runs needs
``model.safetensors``      the global model after the last round
``model_best.safetensors`` the global model of the round with the highest worst-domain accuracy
``partition.json``         how many images of each class every client holds
``report.html``            the run in a browser, while it goes on and after, see `HtmlReport`
``failure.json``           why a run of a sweep failed; gone when it is run again
``checkpoints/``           what it takes to go on, see `fedpw_flwr.checkpoint`
``mlflow-run.txt``         id of the run in a tracker, likewise of others; beside it TensorBoard's
                           event files, and W&B's offline runs in ``wandb/``
=========================  ====================================================================

``metrics.jsonl`` only grows, a whole line at a time, until a run goes on from a checkpoint. Every
other file is written beside its final path and renamed, so an interrupted run never leaves half a
file where a good one is expected. The JSON is strict, as `strict_json` says.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from fedpw_flwr.files import atomic_file
from fedpw_flwr.lab.runs.holdings import Holdings
from fedpw_flwr.lab.runs.records import RoundRecord, RunSummary

if TYPE_CHECKING:
    # Importing torch takes seconds, and following a run's progress must not cost that.
    import torch

ModelFile = Literal["model.safetensors", "model_best.safetensors"]

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
CONFIG_FILE = "config.yaml"
PARTITION_FILE = "partition.json"
FAILURE_FILE = "failure.json"
REPORT_FILE = "report.html"
CHECKPOINTS_FOLDER = "checkpoints"

_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)
"""What reading JSON raises that is broken, or that is not what was expected."""

_Parsed = TypeVar("_Parsed")


class RunFolderError(RuntimeError):
    """A run folder cannot be used as asked; the message says which file and what to do."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Building the object touches nothing, so the same class reads old runs; `start` makes the folder
    a new run's. What cannot be done raises `RunFolderError`.
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
        """Return what a file holds, whether the folder is a run's or not; OSError if it cannot."""
        return (self.path / name).read_bytes()

    def check_unused(self) -> None:
        """Refuse a folder that holds a run, and what is no folder; changes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file, not a folder: choose another output path")
        if self.metrics_file.exists():
            raise RunFolderError(
                f"{self.path} already holds a run ({METRICS_FILE} is there). A new run would mix "
                "its figures with the old one's: choose another output folder, or move the old "
                "one away"
            )

    def start(self, config: str = "") -> None:
        """Make the folder, with an empty record of rounds, for a new run.

        Its configuration is for ``config.yaml``, which is not written without.
        """
        self.check_unused()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # First, so that a run that is killed here can be begun again by resuming it.
            if config:
                self.write_config(config)
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
        """Make the folder a run's again, with the rounds up to its checkpoint's.

        ``after`` is the checkpoint's round; None where there was none, and all is run again.
        """
        if after is None and self.config_file.is_file():
            # Killed before it had a round, or the file for them.
            self.metrics_file.touch()
        rounds = 0 if after is None else after + 1
        kept = [record for record in self.read_rounds() if record.round < rounds]
        if [record.round for record in kept] != list(range(rounds)):
            raise RunFolderError(
                f"{self.metrics_file} lacks rounds before {after}, the checkpoint's: restore the "
                "file, or begin anew"
            )
        self._write_text(METRICS_FILE, "".join(map(_line, kept)))
        (self.path / SUMMARY_FILE).unlink(missing_ok=True)

    def write_holdings(self, holdings: Holdings) -> None:
        """Write ``partition.json``."""
        self._write_json(PARTITION_FILE, holdings.to_json(), indent=None)

    def read_holdings(self) -> Holdings | None:
        """Read ``partition.json``; None where it was not written, as by older versions."""
        if not self.has(PARTITION_FILE):
            return None
        return self._read_json(PARTITION_FILE, Holdings.from_json, "a record of what clients hold")

    def mark_failed(self, status: str, error: str) -> None:
        """Write ``failure.json``: whether the run had started, and why it failed."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_json(FAILURE_FILE, {"status": status, "error": error})

    def unmark_failed(self) -> None:
        """Remove ``failure.json``, because the run is run again."""
        (self.path / FAILURE_FILE).unlink(missing_ok=True)

    def append_round(self, record: RoundRecord) -> None:
        """Add one round to ``metrics.jsonl``; on return the line is on disk."""
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
            stream.write(_line(record).encode())
            stream.flush()
            os.fsync(stream.fileno())

    def read_rounds(self) -> list[RoundRecord]:
        """Read the rounds recorded so far, in their order.

        A last line without its line end is still being written, and left out.
        """
        content = self._read(METRICS_FILE)
        records = []
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):
            try:
                records.append(RoundRecord.from_json(json.loads(line)))
            except _UNREADABLE as error:
                raise RunFolderError(
                    f"line {number} of {self.metrics_file} is not a round's record "
                    f"({_reason(error)}): restore the file, or delete that line"
                ) from error
        return records

    def write_summary(self, summary: RunSummary) -> None:
        """Write ``summary.json``."""
        self._write_json(SUMMARY_FILE, summary.to_json())

    def read_summary(self) -> RunSummary:
        """Read ``summary.json``; there is none before the run has finished."""
        return self._read_json(SUMMARY_FILE, RunSummary.from_json, "a run's summary")

    def write_config(self, text: str) -> None:
        """Write the resolved configuration to ``config.yaml``."""
        self._write_text(CONFIG_FILE, text)

    def read_config(self) -> DictConfig:
        """Read ``config.yaml``."""
        where = self.path / CONFIG_FILE
        try:
            configuration = OmegaConf.load(io.BytesIO(self.content(CONFIG_FILE)))
            OmegaConf.resolve(configuration)
        except FileNotFoundError as error:
            raise RunFolderError(
                f"{where} is missing: nobody can say what was run. Copy the run's folder again, "
                "with all its files"
            ) from error
        except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
            raise RunFolderError(f"{where} is not a configuration: {_reason(error)}") from error
        if not isinstance(configuration, DictConfig):
            raise RunFolderError(f"{where} is not a configuration: it has no keys")
        return configuration

    def save_model(
        self,
        state_dict: Mapping[str, torch.Tensor],
        name: ModelFile = "model.safetensors",
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        """Write a model's state and return the file, which is replaced once the new one is whole.

        The state has parameters and buffers by name, of any shape, dtype, layout in memory and
        device. Where several share memory (tied weights), each is kept. A sparse tensor is refused.
        Of the metadata, ``"round"`` is what ``fedpw-evaluate`` compares with.
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
        """Read a model's state, tensors by name on the CPU, and the metadata stored with it."""
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

    def _read_json(
        self, name: str, parse: Callable[[Mapping[str, Any]], _Parsed], what: str
    ) -> _Parsed:
        content = self._read(name)
        try:
            return parse(json.loads(content))
        except _UNREADABLE as error:
            raise RunFolderError(f"{self.path / name} is not {what} ({_reason(error)})") from error

    def _write_json(self, name: str, content: Mapping[str, Any], indent: int | None = 2) -> None:
        text = json.dumps(content, allow_nan=False, ensure_ascii=False, indent=indent)
        self._write_text(name, text + "\n")

    def _write_text(self, name: str, text: str) -> None:
        with atomic_file(self.path / name) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")


def _line(record: RoundRecord) -> str:
    return json.dumps(record.to_json(), allow_nan=False, ensure_ascii=False) + "\n"


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"no {error.args[0]!r}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
