"""The figures of a run: a round's record, a run's summary, and their strict JSON.

Nothing here touches a disk; `run_folder` says where these lie. A figure that is not finite is
stored as ``null`` and read back as NaN.
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

__all__ = [
    "ClientFigures",
    "RoundRecord",
    "RunSummary",
    "Spread",
    "best_round",
    "installed_versions",
]


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
        Aggregation weights, as the strategy reports them. They sum to 1, except where they also say
        how far the server steps (FedMGDA+, q-FedAvg); `weight_shares` always do.
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

    @property
    def weight_shares(self) -> list[float]:
        """The weights divided by their sum; all NaN where that is not a positive number."""
        total = sum(self.weight)
        if not 0 < total < math.inf:
            return [math.nan] * len(self.weight)
        return [weight / total for weight in self.weight]

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
    failed : int | None (default: None)
        Clients that raised or were lost.
    empty : int | None (default: None)
        Clients that were left out because they hold no data.
    bounded : int | None (default: None)
        Clients whose loss or weight was out of FedPW's bounds.
    client_accuracy : list[float] | None (default: None)
        Accuracy (0 to 1) of the global model on each client's own test pictures, client k's at
        place k, whether it took part or not; None where clients keep no test pictures.
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
        for key in ("quarantined", "failed", "empty", "bounded"):
            count = getattr(self, key)
            if count is not None:
                line[key] = int(count)
        if self.client_accuracy is not None:
            line["client_accuracy"] = [_number(value) for value in self.client_accuracy]
        if self.profile is not None:
            line["profile"] = self.profile.to_json()
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
            **{
                key: int(line[key])
                for key in ("quarantined", "failed", "empty", "bounded")
                if key in line
            },
            client_accuracy=[_float(value) for value in line["client_accuracy"]]
            if "client_accuracy" in line
            else None,
            profile=RoundProfile.from_json(line["profile"]) if "profile" in line else None,
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
    quarantined, failed : int
        Replies dropped and clients that failed, in all rounds together.
    clients : dict[str, float | None] | None
        Fairness of the last round over the clients' own test pictures, figures 0 to 1 and the
        angle in degrees (`fedpw_flwr.fairness.FairnessReport`); None where they keep none.
    versions : dict[str, str | None]
        Versions of Python and of the packages that decide the figures; None if not installed.
    data_digest : str | None (default: None)
        SHA-256 of the pictures that were divided among the clients: runs of one configuration but
        different ones stood on different files. None where an older version did not record it.
    package : str | None (default: None)
        Version of this package and the beginning of a digest of its code, such as
        ``"0.1.0+1a2b3c4d5e6f"``; None likewise.
    empty : int (default: 0)
        Clients left out for want of data, in all rounds together.
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
    failed: int
    clients: dict[str, float | None] | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    data_digest: str | None = None
    package: str | None = None
    empty: int = 0

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
        data_digest, package : str | None, str | None (default: None)
            As in the attributes.

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
            failed=sum(record.failed or 0 for record in records),
            empty=sum(record.empty or 0 for record in records),
            clients=_client_fairness(records[-1]),
            versions=installed_versions(),
            data_digest=data_digest,
            package=package,
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
            "failed": int(self.failed),
            "empty": int(self.empty),
            **({} if self.clients is None else {"clients": dict(self.clients)}),
            "versions": dict(self.versions),
            **({} if self.data_digest is None else {"data_digest": self.data_digest}),
            **({} if self.package is None else {"package": self.package}),
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
            failed=int(summary.get("failed", 0)),
            empty=int(summary.get("empty", 0)),
            clients=dict(summary["clients"]) if "clients" in summary else None,
            versions=dict(summary["versions"]),
            data_digest=_text(summary.get("data_digest")),
            package=_text(summary.get("package")),
        )


def best_round(records: Sequence[RoundRecord]) -> RoundRecord | None:
    """Return the first round with the highest worst-domain accuracy, None if no round has one.

    A model whose test loss is not finite is never the best: what it classifies right is chance.
    """
    best: RoundRecord | None = None
    for record in records:
        worst = record.spread.worst
        usable = math.isfinite(worst) and all(map(math.isfinite, record.loss.values()))
        if usable and (best is None or worst > best.spread.worst):
            best = record
    return best


def _client_fairness(record: RoundRecord) -> dict[str, float | None] | None:
    accuracy = record.client_accuracy
    if not accuracy or not all(map(math.isfinite, accuracy)):
        return None
    return {name: _number(value) for name, value in fairness_report(accuracy).to_dict().items()}


def installed_versions() -> dict[str, str | None]:
    """Return the versions that decide a run's figures; None for a package not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in (
        *("fedpw_flwr", "flwr", "flwr-datasets", "torch", "torchvision"),
        *("numpy", "scipy", "ray"),
    ):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _number(value: float) -> float | None:
    """Return what strict JSON can hold: JSON has no word for NaN or infinity."""
    number = float(value)
    return number if math.isfinite(number) else None


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


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
