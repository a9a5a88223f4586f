"""What one run leaves on disk, and the only place that knows its file names and formats.

Use it on the server to write a run while it trains, and everywhere else (progress display, plots,
``fedpw-evaluate``, a notebook) to read it back, also while it is still being written:

=========================  ====================================================================
``config.yaml``            the resolved configuration
``metrics.jsonl``          one JSON object a line, one line a round; round 0 is the initial model
``summary.json``           the figures a table of runs needs
``model.safetensors``      the global model after the last round
``model_best.safetensors`` the global model of the round with the highest worst-domain accuracy
=========================  ====================================================================

``metrics.jsonl`` only grows, a whole line at a time. Every other file is written beside its final
place and renamed, so an interrupted run never leaves half a file where a good one is expected.
The JSON is strict: a figure that is not finite is stored as ``null`` and read back as NaN.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from uuid import uuid4

if TYPE_CHECKING:
    # Importing torch takes seconds, and following a run's progress must not cost that.
    import torch

__all__ = [
    "ClientFigures",
    "ModelFile",
    "RoundRecord",
    "RunFolder",
    "RunFolderError",
    "RunSummary",
    "Spread",
    "atomic_file",
    "best_round",
    "installed_versions",
]

ModelFile = Literal["model.safetensors", "model_best.safetensors"]

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
CONFIG_FILE = "config.yaml"


class RunFolderError(RuntimeError):
    """A run folder cannot be used as asked; the message says which file and what to do."""


@dataclass(frozen=True)
class Spread:
    """How accuracy is spread over domains, on the 0 to 1 scale.

    Attributes
    ----------
    mean : float
        Mean over domains (the paper's AVG).
    std : float
        Standard deviation over domains with ddof = 1 (the paper's STD); NaN for one domain.
    worst : float
        Lowest accuracy of any domain.
    """

    mean: float
    std: float
    worst: float

    @classmethod
    def over_domains(cls, accuracy: Mapping[str, float]) -> Self:
        """Summarise one accuracy per domain.

        A domain without a finite accuracy makes all three NaN: leaving it out would report a
        better worst domain than there was.
        """
        values = list(accuracy.values())
        if not values or not all(math.isfinite(value) for value in values):
            return cls(math.nan, math.nan, math.nan)
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        std = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan
        return cls(mean, std, min(values))

    @classmethod
    def average(cls, spreads: Sequence[Spread]) -> Self:
        """Average several rounds figure by figure, as tables of the last rounds do."""
        count = len(spreads)
        return cls(
            mean=math.fsum(spread.mean for spread in spreads) / count,
            std=math.fsum(spread.std for spread in spreads) / count,
            worst=math.fsum(spread.worst for spread in spreads) / count,
        )


@dataclass(frozen=True)
class ClientFigures:
    """What one round knows of each client that took part, as parallel lists.

    Attributes
    ----------
    id, domain : list[int], list[str]
        Who the client is and which domain its data come from.
    weight : list[float]
        Aggregation weights; they sum to 1.
    p, q : list[float] | None (default: None)
        Direction and loss terms; None where the strategy has none (FedAvg).
    drop_rate : list[float] | None (default: None)
        Share of entries masked, 0 to 1.
    loss : list[float] | None (default: None)
        Mean training loss reported by the client.

    Raises
    ------
    ValueError
        If the lists have different lengths.
    """

    id: list[int]
    domain: list[str]
    weight: list[float]
    p: list[float] | None = None
    q: list[float] | None = None
    drop_rate: list[float] | None = None
    loss: list[float] | None = None

    def __post_init__(self) -> None:
        """Check that the lists are parallel."""
        lengths = {name: len(values) for name, values in vars(self).items() if values is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the clients' lists must have one entry a client, got {lengths}")

    def to_json(self) -> dict[str, Any]:
        """Return the strict JSON form; lists that are None are left out."""
        lists: dict[str, Any] = {
            "id": [int(client) for client in self.id],
            "domain": [str(domain) for domain in self.domain],
        }
        for name in ("weight", "p", "q", "drop_rate", "loss"):
            values = getattr(self, name)
            if values is not None:
                lists[name] = [_number(value) for value in values]
        return lists

    @classmethod
    def from_json(cls, lists: Mapping[str, Any]) -> Self:
        """Rebuild from the JSON form."""
        optional = {
            name: [_float(value) for value in lists[name]]
            for name in ("p", "q", "drop_rate", "loss")
            if name in lists
        }
        return cls(
            id=[int(client) for client in lists["id"]],
            domain=[str(domain) for domain in lists["domain"]],
            weight=[_float(value) for value in lists["weight"]],
            **optional,
        )


@dataclass(frozen=True)
class RoundRecord:
    """One line of ``metrics.jsonl``: what a round did to the global model.

    Mean, STD and worst accuracy are computed from ``accuracy``, so they cannot disagree with it.

    Attributes
    ----------
    round : int
        Round number; 0 is the initial model.
    seconds : float
        Wall-clock seconds the round took.
    accuracy, loss : dict[str, float]
        Test accuracy (0 to 1) and test loss per domain.
    train_loss : float | None (default: None)
        Mean training loss over the round's clients.
    clients : ClientFigures | None (default: None)
        What each participant contributed.
    loss_term_share : float | None (default: None)
        Share of the loss term in the weights, 0 (direction alone) to 1 (loss alone).
    amplification : float | None (default: None)
        Mean factor by which the consensus entries were amplified.
    quarantined : int | None (default: None)
        Replies that were dropped because they could not be used.
    """

    round: int
    seconds: float
    accuracy: dict[str, float]
    loss: dict[str, float]
    train_loss: float | None = None
    clients: ClientFigures | None = None
    loss_term_share: float | None = None
    amplification: float | None = None
    quarantined: int | None = None

    @property
    def spread(self) -> Spread:
        """Mean, STD (ddof = 1) and worst accuracy over domains."""
        return Spread.over_domains(self.accuracy)

    def to_json(self) -> dict[str, Any]:
        """Return the strict JSON form; fields that are None are left out."""
        spread = self.spread
        line: dict[str, Any] = {
            "round": int(self.round),
            "seconds": _number(self.seconds),
            "accuracy": {domain: _number(value) for domain, value in self.accuracy.items()},
            "loss": {domain: _number(value) for domain, value in self.loss.items()},
            "mean_accuracy": _number(spread.mean),
            "std_accuracy": _number(spread.std),
            "worst_accuracy": _number(spread.worst),
        }
        if self.train_loss is not None:
            line["train_loss"] = _number(self.train_loss)
        if self.clients is not None:
            line["clients"] = self.clients.to_json()
        if self.loss_term_share is not None:
            line["loss_term_share"] = _number(self.loss_term_share)
        if self.amplification is not None:
            line["amplification"] = _number(self.amplification)
        if self.quarantined is not None:
            line["quarantined"] = int(self.quarantined)
        return line

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Self:
        """Rebuild from the JSON form."""
        return cls(
            round=int(line["round"]),
            seconds=_float(line["seconds"]),
            accuracy={domain: _float(value) for domain, value in line["accuracy"].items()},
            loss={domain: _float(value) for domain, value in line["loss"].items()},
            train_loss=_float(line["train_loss"]) if "train_loss" in line else None,
            clients=ClientFigures.from_json(line["clients"]) if "clients" in line else None,
            loss_term_share=_float(line["loss_term_share"]) if "loss_term_share" in line else None,
            amplification=_float(line["amplification"]) if "amplification" in line else None,
            quarantined=int(line["quarantined"]) if "quarantined" in line else None,
        )


@dataclass(frozen=True)
class RunSummary:
    """The figures of a finished run that a table of runs needs.

    Attributes
    ----------
    strategy : str
        Name of the strategy, as the user types it.
    seed, rounds : int
        The run's seed and the number of the last round.
    config_fingerprint : str
        SHA-256 of ``config.yaml``: runs with the same one were asked to do the same.
    accuracy : dict[str, float]
        Final accuracy per domain, 0 to 1.
    final, last_3, last_5 : Spread
        Mean, STD and worst of the last round, and their means over the last 3 and 5 rounds
        (over all trained rounds where there are fewer).
    best_round : int | None
        First round with the highest worst-domain accuracy; None if no round has one.
    best : Spread
        Mean, STD and worst of that round.
    seconds : float
        Wall-clock seconds of all rounds together.
    quarantined : int
        Replies dropped in all rounds together.
    versions : dict[str, str | None]
        Versions of Python and of the packages that decide the figures; None if not installed.
    """

    strategy: str
    seed: int
    rounds: int
    config_fingerprint: str
    accuracy: dict[str, float]
    final: Spread
    last_3: Spread
    last_5: Spread
    best_round: int | None
    best: Spread
    seconds: float
    quarantined: int
    versions: dict[str, str | None] = field(default_factory=dict)

    @classmethod
    def of_run(
        cls, records: Sequence[RoundRecord], *, config_text: str, strategy: str, seed: int
    ) -> Self:
        """Summarise the rounds of a run.

        Parameters
        ----------
        records : Sequence[RoundRecord]
            All rounds in order, the initial model included.
        config_text : str
            The resolved configuration, exactly as written to ``config.yaml``.
        strategy : str
            Name of the strategy.
        seed : int
            The run's seed.

        Raises
        ------
        ValueError
            If there are no rounds.
        """
        if not records:
            raise ValueError("a run without any round cannot be summarised")
        trained = [record for record in records if record.round > 0] or list(records)
        spreads = [record.spread for record in trained]
        best = best_round(records)
        nothing = math.nan
        return cls(
            strategy=strategy,
            seed=seed,
            rounds=records[-1].round,
            config_fingerprint=hashlib.sha256(config_text.encode()).hexdigest(),
            accuracy=dict(records[-1].accuracy),
            final=records[-1].spread,
            last_3=Spread.average(spreads[-3:]),
            last_5=Spread.average(spreads[-5:]),
            best_round=None if best is None else best.round,
            best=Spread(nothing, nothing, nothing) if best is None else best.spread,
            seconds=math.fsum(record.seconds for record in records),
            quarantined=sum(record.quarantined or 0 for record in records),
            versions=installed_versions(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the strict JSON form."""
        return {
            "strategy": self.strategy,
            "seed": int(self.seed),
            "rounds": int(self.rounds),
            "config_fingerprint": self.config_fingerprint,
            "accuracy": {domain: _number(value) for domain, value in self.accuracy.items()},
            **_spread_to_json(self.final),
            "last_3_rounds": _spread_to_json(self.last_3),
            "last_5_rounds": _spread_to_json(self.last_5),
            "best_worst_round": {"round": self.best_round, **_spread_to_json(self.best)},
            "seconds": _number(self.seconds),
            "quarantined": int(self.quarantined),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, summary: Mapping[str, Any]) -> Self:
        """Rebuild from the JSON form."""
        return cls(
            strategy=str(summary["strategy"]),
            seed=int(summary["seed"]),
            rounds=int(summary["rounds"]),
            config_fingerprint=str(summary["config_fingerprint"]),
            accuracy={domain: _float(value) for domain, value in summary["accuracy"].items()},
            final=_spread_from_json(summary),
            last_3=_spread_from_json(summary["last_3_rounds"]),
            last_5=_spread_from_json(summary["last_5_rounds"]),
            best_round=summary["best_worst_round"]["round"],
            best=_spread_from_json(summary["best_worst_round"]),
            seconds=_float(summary["seconds"]),
            quarantined=int(summary["quarantined"]),
            versions=dict(summary["versions"]),
        )


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

    def start(self) -> None:
        """Make the folder, with an empty record of rounds, for a new run.

        Raises
        ------
        RunFolderError
            If the folder already holds a run, or cannot be written to.
        """
        self.check_unused()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Exclusive creation: of two runs sent to the same folder at once, one must lose.
            self.metrics_file.open("x").close()
        except FileExistsError:
            self.check_unused()
            raise
        except OSError as error:
            raise RunFolderError(
                f"cannot write to the output folder {self.path} ({error.strerror}): choose another"
            ) from error

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
        line = json.dumps(record.to_json(), allow_nan=False, ensure_ascii=False) + "\n"
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
            Parameters and buffers by name, of any shape, dtype, layout in memory and device.
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
            If the state cannot be stored, e.g. because two names share one tensor's memory.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = self.path / name
        with atomic_file(path) as partial:
            try:
                tensors = {key: tensor.detach().contiguous() for key, tensor in state_dict.items()}
                save_file(tensors, partial, metadata=None if metadata is None else dict(metadata))
            except (SafetensorError, RuntimeError, ValueError) as error:
                shared = _shared_names(state_dict) if "share memory" in str(error) else ""
                cause = f"{shared} share memory; pass copies (tensor.clone())"
                if not shared:
                    cause = _reason(error)
                raise RunFolderError(f"the model cannot be saved to {path}: {cause}") from error
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
            return (self.path / name).read_bytes()
        except FileNotFoundError as error:
            raise RunFolderError(
                f"{self.path / name} is missing: the run has not finished, or it failed"
            ) from error

    def _write_text(self, name: str, text: str) -> None:
        with atomic_file(self.path / name) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")


def best_round(records: Sequence[RoundRecord]) -> RoundRecord | None:
    """Return the first round with the highest worst-domain accuracy, None if no round has one."""
    best: RoundRecord | None = None
    for record in records:
        worst = record.spread.worst
        if math.isfinite(worst) and (best is None or worst > best.spread.worst):
            best = record
    return best


def installed_versions() -> dict[str, str | None]:
    """Return the versions that decide a run's figures; None for a package not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("fedpw_flwr", "flwr", "torch", "numpy", "ray"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


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


def _number(value: float) -> float | None:
    """Return what strict JSON can hold: JSON has no word for NaN or infinity."""
    number = float(value)
    return number if math.isfinite(number) else None


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _spread_to_json(spread: Spread) -> dict[str, float | None]:
    return {
        "mean_accuracy": _number(spread.mean),
        "std_accuracy": _number(spread.std),
        "worst_accuracy": _number(spread.worst),
    }


def _spread_from_json(figures: Mapping[str, Any]) -> Spread:
    return Spread(
        mean=_float(figures["mean_accuracy"]),
        std=_float(figures["std_accuracy"]),
        worst=_float(figures["worst_accuracy"]),
    )


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"no {error.args[0]!r}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _shared_names(tensors: Mapping[str, torch.Tensor]) -> str:
    by_storage: dict[tuple[str, int], list[str]] = {}
    for name, tensor in tensors.items():
        storage = (str(tensor.device), tensor.untyped_storage().data_ptr())
        by_storage.setdefault(storage, []).append(name)
    return ", ".join(" and ".join(names) for names in by_storage.values() if len(names) > 1)
