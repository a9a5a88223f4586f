"""The figures of a run: what a round did, and what a table of runs needs of it.

Nothing here touches a disk; `run_folder` says where these lie.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Self

from fedpw_flwr.fairness import fairness_report
from fedpw_flwr.lab.runs.round_profile import RoundProfile
from fedpw_flwr.lab.runs.strict_json import StrictJson

__all__ = [
    "ClientFigures",
    "RoundRecord",
    "RunSummary",
    "Spread",
    "best_round",
    "installed_versions",
]

_VERSIONED = (
    *("fedpw_flwr", "flwr", "flwr-datasets", "torch", "torchvision"),
    *("numpy", "scipy", "ray"),
)


@dataclass(frozen=True)
class Spread(StrictJson):
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
    """What one round knows of each client that took part, as parallel lists.

    Attributes
    ----------
    id, domain : list[int], list[str]
        Who the client is and which domain its data come from.
    weight : list[float]
        Aggregation weights, as the strategy reports them. They sum to 1, except where they also say
        how far the server steps (FedMGDA+, q-FedAvg); `weight_shares` always do.
    p, q : list[float] | None (default: None)
        Direction and loss terms; None where the strategy has none (FedAvg).
    drop_rate : list[float] | None (default: None)
        Share of entries masked, 0 to 1.
    loss : list[float] | None (default: None)
        Mean training loss reported by the client.
    """

    id: list[int]
    domain: list[str]
    weight: list[float]
    p: list[float] | None = None
    q: list[float] | None = None
    drop_rate: list[float] | None = None
    loss: list[float] | None = None

    def __post_init__(self) -> None:
        """Check that the lists are parallel; ValueError if not."""
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
    """One line of ``metrics.jsonl``: what a round did to the global model.

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
    quarantined, failed, empty, bounded : int | None (default: None)
        Replies that could not be used, clients that raised or were lost, clients left out because
        they hold no data, and clients whose loss or weight was out of FedPW's bounds.
    client_accuracy : list[float] | None (default: None)
        Accuracy (0 to 1) of the global model on each client's own test images, in the order of the
        client ids, whether it took part or not; None where clients keep no test images.
    profile : RoundProfile | None (default: None)
        Where the round's time went, in runs that are profiled.
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
    failed: int | None = None
    empty: int | None = None
    bounded: int | None = None
    client_accuracy: list[float] | None = None
    profile: RoundProfile | None = None

    @property
    def spread(self) -> Spread:
        """Mean, STD (ddof = 1) and worst accuracy over domains."""
        return Spread.over_domains(self.accuracy)

    def to_json(self) -> dict[str, Any]:
        """Return the strict JSON form; the spread stands in it for whoever reads the file."""
        line = super().to_json()
        first = {key: line.pop(key) for key in ("round", "seconds", "accuracy", "loss")}
        return first | self.spread.to_json() | line


@dataclass(frozen=True)
class RunSummary(StrictJson):
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
    quarantined, failed, empty : int
        Replies dropped, clients that failed and clients without data, in all rounds together.
    clients : dict[str, float] | None
        Fairness of the last round over the clients' own test images, figures 0 to 1 and the
        angle in degrees (`fedpw_flwr.fairness.FairnessReport`); None where they keep none.
    versions : dict[str, str | None]
        Versions of Python and of the packages that decide the figures; None if not installed.
    data_digest : str | None (default: None)
        SHA-256 of the images that were divided among the clients: runs of one configuration but
        different ones stood on different files. None where an older version did not record it.
    package : str | None (default: None)
        Version of this package and the beginning of a digest of its code, such as
        ``"0.1.0+1a2b3c4d5e6f"``; None likewise.
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
    failed: int = 0
    empty: int = 0
    clients: dict[str, float] | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    data_digest: str | None = None
    package: str | None = None

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
    ) -> Self:
        """Summarise the rounds of a run; ValueError if there are none.

        Parameters
        ----------
        records : Sequence[RoundRecord]
            All rounds in order, the initial model included.
        config_text : str
            The resolved configuration, exactly as written to ``config.yaml``.
        strategy, seed, data_digest, package : str, int, str | None, str | None
            As in the attributes.
        """
        if not records:
            raise ValueError("a run without any round cannot be summarised")
        last = records[-1]
        spreads = [record.spread for record in records if record.round > 0] or [last.spread]
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
            clients=_client_fairness(last),
            versions=installed_versions(),
            data_digest=data_digest,
            package=package,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the strict JSON form, the spreads under the names that readers of it know."""
        form = super().to_json()
        for name in ("final", "last_3", "last_5", "best", "best_round"):
            form.pop(name, None)
        names = ("strategy", "seed", "rounds", "config_fingerprint", "accuracy")
        return {
            **{name: form.pop(name) for name in names},
            **self.final.to_json(),
            "last_3_rounds": self.last_3.to_json(),
            "last_5_rounds": self.last_5.to_json(),
            "best_worst_round": {"round": self.best_round, **self.best.to_json()},
            **form,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild from the JSON form."""
        spreads = {
            "final": content,
            "last_3": content["last_3_rounds"],
            "last_5": content["last_5_rounds"],
            "best": content["best_worst_round"],
            "best_round": content["best_worst_round"]["round"],
        }
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


def _client_fairness(record: RoundRecord) -> dict[str, float] | None:
    accuracy = record.client_accuracy
    if not accuracy or not all(map(math.isfinite, accuracy)):
        return None
    return {name: float(value) for name, value in fairness_report(accuracy).to_dict().items()}


def installed_versions() -> dict[str, str | None]:
    """Return the versions that decide a run's figures; None for a package not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _VERSIONED:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions
