"""The figures of a run: what a round did, and what a table of runs needs of it.

`run_folder` says where these lie.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from fedpw_flwr import __version__
from fedpw_flwr.fairness import fairness_report
from fedpw_flwr.lab.runs.round_profile import RoundProfile
from fedpw_flwr.lab.runs.strict_json import StrictJson

_VERSIONED = (
    *("fedpw_flwr", "flwr", "flwr-datasets", "torch", "torchvision"),
    *("numpy", "scipy", "ray"),
)


@dataclass(frozen=True)
class Spread(StrictJson):
    """How accuracy is spread over domains, on the 0 to 1 scale."""

    mean: float  # the paper's AVG
    std: float  # with ddof = 1, the paper's STD; NaN for one domain
    worst: float

    @classmethod
    def over_domains(cls, accuracy: Mapping[str, float]) -> Self:
        """Summarise one accuracy per domain.

        A domain without a finite accuracy makes all three NaN: leaving it out would report a
        better worst domain than there was.
        """
        values = list(accuracy.values())
        if not values or not all(map(math.isfinite, values)):
            return cls(math.nan, math.nan, math.nan)
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        std = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan
        return cls(mean, std, min(values))

    @classmethod
    def average(cls, spreads: Sequence[Spread]) -> Self:
        """Average several rounds figure by figure, as tables of the last rounds do."""
        figures = [(spread.mean, spread.std, spread.worst) for spread in spreads]
        return cls(*(math.fsum(column) / len(spreads) for column in zip(*figures, strict=True)))

    def to_json(self) -> dict[str, Any]:
        """Return the strict JSON form."""
        return {f"{name}_accuracy": figure for name, figure in super().to_json().items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild from the JSON form."""
        names = ("mean", "std", "worst")
        return super().from_json({name: content[f"{name}_accuracy"] for name in names})


@dataclass(frozen=True)
class ClientFigures(StrictJson):
    """What one round knows of each client that took part, as parallel lists; ValueError if not.

    A list that the strategy has no figures for is None, such as FedAvg's p and q.
    """

    id: list[int]
    domain: list[str]
    weight: list[float]  # as the strategy reports it: FedMGDA+ and q-FedAvg also step by it
    p: list[float] | None = None  # direction terms
    q: list[float] | None = None  # loss terms
    drop_rate: list[float] | None = None  # share of entries masked, 0 to 1
    loss: list[float] | None = None  # mean training loss that the client reports

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in vars(self).items() if values is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the clients' lists must have one entry a client, got {lengths}")

    @property
    def weight_shares(self) -> list[float]:
        """The weights divided by their sum; all NaN where that is not a positive number."""
        total = sum(self.weight)
        if not 0 < total < math.inf:
            return [math.nan] * len(self.weight)
        return [weight / total for weight in self.weight]


@dataclass(frozen=True)
class RoundRecord(StrictJson):
    """One line of ``metrics.jsonl``: what a round did to the global model."""

    round: int  # 0 is the initial model
    seconds: float  # wall-clock
    accuracy: dict[str, float]  # on the test images, 0 to 1, by domain; empty if not tested
    loss: dict[str, float]  # on the test images, by domain
    auc: dict[str, float] | None = None  # of two classes: area under the ROC curve, by domain
    pooled_auc: float | None = None  # that of the test data of all domains together
    train_loss: float | None = None  # mean over the round's clients
    clients: ClientFigures | None = None
    loss_term_share: float | None = None  # in the weights: 0 is direction alone, 1 loss alone
    amplification: float | None = None  # mean factor of the consensus entries
    quarantined: int | None = None  # replies that could not be used
    failed: int | None = None  # clients that raised or were lost
    empty: int | None = None  # clients that were left out because they hold no data
    bounded: int | None = None  # clients whose loss or weight was out of FedPW's bounds
    client_accuracy: list[float] | None = None
    """Of the global model on every client's own test images, 0 to 1, in the order of the client
    ids, whether a client took part or not; None where clients keep no test images."""
    profile: RoundProfile | None = None  # in runs that are profiled

    @property
    def spread(self) -> Spread:
        """Mean, STD (ddof = 1) and worst accuracy over domains."""
        return Spread.over_domains(self.accuracy)

    @property
    def client_fairness(self) -> dict[str, float] | None:
        """The figures of the `FairnessReport` over the clients' own test images.

        None without those, and where one is unknown: leaving that client out would report a better
        worst client than there was.
        """
        accuracy = self.client_accuracy
        if not accuracy or not all(map(math.isfinite, accuracy)):
            return None
        return {name: float(value) for name, value in fairness_report(accuracy).to_dict().items()}

    def figures(self) -> dict[str, float]:
        """Return the figures of the test by name, where finite, named and scaled as in the files.

        There are ``accuracy/DOMAIN``, ``loss/DOMAIN``, ``mean_accuracy``, ``std_accuracy``,
        ``worst_accuracy``; of two classes ``auc/DOMAIN`` and ``pooled_auc``; and on the clients'
        own test images ``client_accuracy/client_3``, and over them ``clients/worst_10`` and so on.
        """
        own = enumerate(self.client_accuracy or [])
        by_name = {
            **{"accuracy": self.accuracy, "loss": self.loss, "auc": self.auc},
            "client_accuracy": {f"client_{client}": each for client, each in own},
            "clients": self.client_fairness,
        }
        found = {**self.spread.to_json(), "pooled_auc": self.pooled_auc}
        for name, values in by_name.items():
            found |= {f"{name}/{key}": value for key, value in (values or {}).items()}
        return {name: one for name, one in found.items() if one is not None and math.isfinite(one)}

    def to_json(self) -> dict[str, Any]:
        """Return the strict JSON form; the spread stands in it for whoever reads the file."""
        line = super().to_json()
        first = {key: line.pop(key) for key in ("round", "seconds", "accuracy", "loss")}
        return first | self.spread.to_json() | line


@dataclass(frozen=True)
class RunSummary(StrictJson):
    """The figures of a finished run that a table of runs needs."""

    strategy: str  # its name as the user types it
    seed: int
    rounds: int  # number of the last one
    config_fingerprint: str  # SHA-256 of config.yaml: what the run was asked to do
    accuracy: dict[str, float]  # final, by domain
    final: Spread
    last_3: Spread  # mean over the last 3 tested rounds after training, or all if there are fewer
    last_5: Spread
    best_round: int | None  # first round with the highest worst domain; None if there is none
    best: Spread  # of that round
    seconds: float  # of all rounds together, as the next three
    quarantined: int
    failed: int = 0
    empty: int = 0
    auc: dict[str, float] | None = None  # final, by domain; of two classes
    pooled_auc: float | None = None
    clients: dict[str, float] | None = None
    """The last round's `FairnessReport` over the clients' own test images; None without those."""
    versions: dict[str, str | None] = field(default_factory=dict)  # as from `installed_versions`
    data_digest: str | None = None
    """SHA-256 of the images that were divided among the clients: runs of one configuration but
    different ones stood on different files. None where an older version did not record it."""
    package: str | None = None  # as from `package_state`; None likewise
    stopped: str | None = None  # why it ended before its last round; None where it did not

    @classmethod
    def of_run(
        cls,
        records: Sequence[RoundRecord],
        *,
        config_text: str,
        strategy: str,
        seed: int,
        data_digest: str | None = None,
        package: str | None = None,
        stopped: str | None = None,
    ) -> Self:
        """Summarise all rounds of a run in order, the initial model included; ValueError if none.

        ``config_text`` is the resolved configuration, exactly as written to ``config.yaml``.
        """
        if not records:
            raise ValueError("a run without any round cannot be summarised")
        last = records[-1]
        tested = [record for record in records if record.accuracy]
        spreads = [record.spread for record in tested if record.round > 0] or [last.spread]
        best = best_round(records)
        return cls(
            strategy=strategy,
            seed=seed,
            rounds=last.round,
            config_fingerprint=hashlib.sha256(config_text.encode()).hexdigest(),
            accuracy=dict(last.accuracy),
            final=last.spread,
            last_3=Spread.average(spreads[-3:]),
            last_5=Spread.average(spreads[-5:]),
            best_round=None if best is None else best.round,
            best=Spread.over_domains({}) if best is None else best.spread,
            seconds=math.fsum(record.seconds for record in records),
            quarantined=sum(record.quarantined or 0 for record in records),
            failed=sum(record.failed or 0 for record in records),
            empty=sum(record.empty or 0 for record in records),
            auc=last.auc,
            pooled_auc=last.pooled_auc,
            clients=last.client_fairness,
            versions=installed_versions(),
            data_digest=data_digest,
            package=package,
            stopped=stopped,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the strict JSON form, the spreads under the names that readers of it know."""
        form = super().to_json()
        names = ("strategy", "seed", "rounds", "config_fingerprint", "accuracy")
        first = {name: form.pop(name) for name in names}
        first |= form.pop("final")
        first |= {f"{name}_rounds": form.pop(name) for name in ("last_3", "last_5")}
        best = {"round": form.pop("best_round", None), **form.pop("best")}
        return {**first, "best_worst_round": best, **form}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild from the JSON form."""
        spreads = {name: content[f"{name}_rounds"] for name in ("last_3", "last_5")}
        best = content["best_worst_round"]
        spreads |= {"final": content, "best": best, "best_round": best["round"]}
        return super().from_json({**content, **spreads})


def best_round(records: Sequence[RoundRecord]) -> RoundRecord | None:
    """Return the first round with the highest worst-domain accuracy, None if no round has one.

    A model whose test loss is not finite is never the best: what it classifies right is chance.
    """
    usable = [
        record
        for record in records
        if math.isfinite(record.spread.worst) and all(map(math.isfinite, record.loss.values()))
    ]
    return max(usable, key=lambda record: record.spread.worst, default=None)


def installed_versions() -> dict[str, str | None]:
    """Return the versions that decide a run's figures; None for a package not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _VERSIONED:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


@cache
def package_state() -> str:
    """Return the package's version and the beginning of a SHA-256 of its modules, joined by +.

    Between two releases the version alone does not say which code made a run.
    """
    package = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\n".encode())
        digest.update(file.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:12]}"
