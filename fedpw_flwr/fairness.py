"""How evenly a model serves the clients, for any strategy: what fair-FL papers report.

An average hides the clients that a model fails. The functions here take one value per client, the
more the better (an accuracy, say), and tell how the values are spread; every client counts the
same, however many examples it has. They need NumPy alone:

    fairness_report([0.9, 0.8, 0.7]).worst_10

Two functions put that report into the metrics of every evaluation round, beside the weighted
averages, in strategies of either Flower API:

    FedAvg(evaluate_metrics_aggr_fn=fairness.evaluate_metrics_aggr_fn("eval_acc"))

A value that is better when small, such as a loss, swaps worst and best; everything else keeps its
meaning. ValueError where `values` is not one finite number per client, of at least one client.

q-FFL is Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from flwr.app import MetricRecord, RecordDict
    from flwr.common import Metrics

_logger = logging.getLogger("flwr")


@dataclass(frozen=True)
class FairnessReport:
    """How one value per client, the more the better, is spread over the clients.

    Each figure is as the function of its name computes it; ``std`` is `standard_deviation`, and
    ``worst_5`` is `worst` of 5 % of the clients, where ``worst`` is the one worst client.
    """

    clients: int  # their number, n
    mean: float
    std: float
    worst: float
    best: float
    worst_5: float
    worst_10: float
    worst_20: float
    best_5: float
    best_10: float
    best_20: float
    jain_index: float
    entropy: float
    angle: float

    def to_dict(self) -> dict[str, float]:
        """Return the figures by name, JSON-ready."""
        return asdict(self)


def fairness_report(values: ArrayLike, *, ddof: int = 1) -> FairnessReport:
    """Compute every fairness metric of this module; `ddof` is as in `standard_deviation`.

    ValueError where `values` is not one finite, non-negative value per client, shape (n,), n ≥ 1.
    """
    tails = {
        f"{name}_{percent}": tail(values, percent=percent)
        for name, tail in (("worst", worst), ("best", best))
        for percent in (5, 10, 20)
    }
    return FairnessReport(
        clients=len(_ordered(values)),
        mean=mean(values),
        std=standard_deviation(values, ddof=ddof),
        worst=worst(values),
        best=best(values),
        **tails,
        jain_index=jain_index(values),
        entropy=entropy(values),
        angle=angle(values),
    )


def mean(values: ArrayLike) -> float:
    """Compute the mean x̄ = Σ x_k / n of one value x_k per client, shape (n,).

    The mean weighted by examples is another number, the one Flower reports by default.
    """
    return _mean(_ordered(values))


def standard_deviation(values: ArrayLike, *, ddof: int = 1) -> float:
    """Compute the standard deviation over clients, √(Σ (x_k − x̄)² / (n − ddof)); 0 for one client.

    The default is the STD that FedPW reports over domains. q-FFL reports the variance over clients,
    the square of this; for the population's variance take ddof = 0, which is NumPy's default. Any
    other ddof is a ValueError.
    """
    if ddof not in (0, 1):
        raise ValueError(f"standard_deviation: ddof is {ddof!r}, choose 0 or 1")
    ordered = _ordered(values)
    largest = float(np.abs(ordered).max())
    if len(ordered) == 1 or largest == 0:
        return 0.0
    return largest * float(np.std(ordered / largest, ddof=ddof))


def worst(values: ArrayLike, percent: float = 0.0) -> float:
    """Mean of the worst `percent` % of the clients; of the worst client alone by default.

    The mean of the ⌈percent·n / 100⌉ lowest values, at least one, percent in [0, 100]. The worst
    client is what Mohri, Sivek, Suresh, "Agnostic Federated Learning" (ICML 2019) optimise; q-FFL
    reports the worst 10 %, other papers of the field 5 and 20 %.
    """
    ordered = _ordered(values)
    return _mean(ordered[: _clients_in(percent, len(ordered))])


def best(values: ArrayLike, percent: float = 0.0) -> float:
    """Mean of the best `percent` % of the clients; of the best client alone by default.

    The mean of the ⌈percent·n / 100⌉ highest values, at least one, percent in [0, 100]. q-FFL
    reports the best 10 % beside the worst, to show what fairness takes from whom.
    """
    ordered = _ordered(values)
    return _mean(ordered[-_clients_in(percent, len(ordered)) :])


def jain_index(values: ArrayLike) -> float:
    """Compute Jain's index (Σ x_k)² / (n · Σ x_k²), the squared cosine of `angle`; x_k ≥ 0.

    In [1/n, 1]; 1 where all values are equal, all zero among them. It reads as the share of clients
    that are served: k equal values among n − k zeros give k/n. From Jain, Chiu, Hawe, "A
    Quantitative Measure of Fairness and Discrimination for Resource Allocation in Shared Computer
    Systems", DEC Research Report TR-301, 1984.
    """
    scaled = _relative_to_best(values, "jain_index")
    index = float(scaled.sum()) ** 2 / (len(scaled) * float(np.square(scaled).sum()))
    return min(1.0, index)  # rounding may lift it by one digit


def entropy(values: ArrayLike) -> float:
    """Compute the entropy −Σ s_k ln s_k of the shares s_k = x_k / Σ x_k, in nats; x_k ≥ 0.

    In [0, ln n]; ln n where all values are equal, all zero among them. One of the definitions of
    uniformity in q-FFL; what its tables report, the divergence KL(s ‖ uniform), is ln n − entropy.
    The maximum grows with n, so compare rounds of the same number of clients, or that divergence.
    """
    scaled = _relative_to_best(values, "entropy")
    shares = scaled / scaled.sum()
    positive = shares[shares > 0]
    uncertainty = -float((positive * np.log(positive)).sum())
    return min(max(0.0, uncertainty), math.log(len(shares)))


def angle(values: ArrayLike) -> float:
    """Compute the angle to the all-equal vector, arccos(Σ x_k / (√n · ‖x‖)) in degrees; x_k ≥ 0.

    In [0, 90); 0 where all values are equal, all zero among them. By its cosine, the similarity to
    (1, …, 1), q-FFL defines uniformity, and its tables report this angle.
    """
    scaled = _relative_to_best(values, "angle")
    # By its tangent: the arccos of a cosine near 1 loses half of the digits.
    along = math.sqrt(len(scaled)) * float(scaled.mean())
    across = float(np.linalg.norm(scaled - scaled.mean()))
    return math.degrees(math.atan2(across, along))


def evaluate_metrics_aggr_fn(metric: str) -> Callable[[list[RecordDict], str], MetricRecord]:
    """Make an `evaluate_metrics_aggr_fn` for any strategy of `flwr.serverapp.strategy`.

    A round's metrics are then what Flower reports by default, the average by `weighted_by_key` of
    every metric that all clients share, and ``fairness-clients``, ``fairness-mean``,
    ``fairness-std``, ``fairness-worst``, ``fairness-worst-5`` and so on: the entries of
    `FairnessReport`, over the clients that reported `metric` as a number. Clients of weight 0
    evaluated on nothing and count for nothing; there are no metrics where all of them did. A client
    whose `metric` is not finite or is negative is left out and logged. ValueError if a weight is
    missing or cannot weight, or if no client reported `metric` as a finite number of at least 0 in
    the first round; later rounds get the averages alone, and a warning.

    Parameters
    ----------
    metric : str
        MetricRecord key to judge fairness by, such as "eval_acc".
    """
    return _Judge(metric).of_messages


def evaluate_metrics_aggregation_fn(metric: str) -> Callable[[list[tuple[int, Metrics]]], Metrics]:
    """Make an `evaluate_metrics_aggregation_fn` for any strategy of `flwr.server.strategy`.

    The same entries and errors as from `evaluate_metrics_aggr_fn`, weighted by each client's number
    of examples. Metrics that are not numbers (strings, bytes, truth values) are left out.

    Parameters
    ----------
    metric : str
        Key in the clients' metrics to judge fairness by, such as "accuracy".
    """
    if not isinstance(metric, str):  # a strategy given the function itself calls it with replies
        raise TypeError(
            "evaluate_metrics_aggregation_fn takes the name of the metric to judge fairness by: "
            "evaluate_metrics_aggregation_fn=fairness.evaluate_metrics_aggregation_fn('accuracy')"
        )
    return _Judge(metric).of_legacy


@dataclass
class _Judge:
    """Averages a round's metrics and adds the fairness of one of them."""

    metric: str
    judged_before: bool = False

    def of_messages(self, contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
        # Strategies let no other reply through than one with a single MetricRecord.
        records = [record for content in contents for record in content.metric_records.values()]
        return self.aggregated(records, weighted_by_key)

    def of_legacy(self, metrics: list[tuple[int, Metrics]]) -> Metrics:
        key = "num-examples"
        records = [_numbers({**one, key: count}) for count, one in metrics]
        aggregated = self.aggregated(records, key)
        return {key: value for key, value in aggregated.items() if not isinstance(value, list)}

    def aggregated(self, replies: list[MetricRecord], weighted_by_key: str) -> MetricRecord:
        # Imported here, because the functions on arrays need no Flower.
        from flwr.app import MetricRecord, RecordDict
        from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

        weighty = [record for record in replies if _weight(record, weighted_by_key) > 0]
        if not weighty:
            return MetricRecord()
        # Leave out impossible values, unless they are everyone's.
        possible = [record for record in weighty if _possible(_number(record, self.metric))]
        if possible and len(possible) < len(weighty):
            _logger.warning(
                f"fairness: {len(weighty) - len(possible)} of {len(weighty)} clients left out, "
                f"whose {self.metric!r} is not a finite number of at least 0"
            )
        counted = possible or weighty
        # Average what all have alike: a number, or lists of one length.
        shapes = [{key: np.shape(value) for key, value in record.items()} for record in counted]
        shared = [key for key in counted[0] if len({shape.get(key) for shape in shapes}) == 1]
        alike = (MetricRecord({key: record[key] for key in shared}) for record in counted)
        contents = [RecordDict({"metrics": record}) for record in alike]
        aggregated = aggregate_metricrecords(contents, weighted_by_key)
        try:
            report = _report(counted, self.metric)
        except ValueError as error:
            if not self.judged_before:
                raise
            # Clients that report something else from one round to the next must not end the run.
            _logger.warning(f"fairness: nothing to judge in this round: {error}")
            return aggregated
        self.judged_before = True
        for name, value in report.to_dict().items():
            aggregated[f"fairness-{name.replace('_', '-')}"] = value
        return aggregated


def _report(records: list[MetricRecord], metric: str) -> FairnessReport:
    values = [value for record in records if (value := _number(record, metric)) is not None]
    if not values:
        numbers = {key for one in records for key in one if _number(one, key) is not None}
        raise ValueError(
            f"no client reported {metric!r} as a number, so there is nothing to judge fairness by: "
            f"let every client's evaluation return it, or name one of {sorted(numbers)}"
        )
    try:
        return fairness_report(values)
    except ValueError as error:
        raise ValueError(f"metric {metric!r} of {len(values)} clients: {error}") from error


def _ordered(values: ArrayLike) -> NDArray[np.float64]:
    """Check one value per client and sort them, so that no sum depends on the clients' order."""
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "biuf":
        raise ValueError(
            f"fairness needs one number per client, shape (n,), n ≥ 1, but got the shape "
            f"{array.shape} of type {array.dtype}: pass one row or column at a time, convert the "
            "values with float(), and leave out clients without a value"
        )
    numbers = array.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"fairness needs finite values, but got {_listed(numbers, ~np.isfinite(numbers))}: "
            "look at those clients' evaluation, or leave them out and say so"
        )
    return np.sort(numbers)


def _relative_to_best(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Scale values so that the largest is 1, where no square overflows; all 1 if all are zero."""
    ordered = _ordered(values)
    if ordered[0] < 0:
        given = np.asarray(values, dtype=np.float64)
        raise ValueError(
            f"{name} compares the clients' shares of a whole, so it needs values of at least 0, "
            f"but got {_listed(given, given < 0)}: measure something that cannot be negative, or "
            "use mean, standard_deviation, worst and best alone"
        )
    return ordered / ordered[-1] if ordered[-1] > 0 else np.ones_like(ordered)


def _listed(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> str:
    shown = [f"{values[k]} at position {k}" for k in np.flatnonzero(chosen)]
    return ", ".join(shown[:5] + ["..."] * (len(shown) > 5))


def _mean(ordered: NDArray[np.float64]) -> float:
    largest = float(np.abs(ordered).max())
    # Scaled, the mean of equal values is exactly their value, and no sum overflows.
    return largest * float((ordered / largest).mean()) if largest > 0 else 0.0


def _clients_in(percent: float, clients: int) -> int:
    if not 0 <= percent <= 100:
        raise ValueError(f"percent is {percent!r}, choose a share of the clients from 0 to 100")
    return max(1, math.ceil(percent * clients / 100))


def _numbers(metrics: Mapping[str, Any]) -> MetricRecord:
    from flwr.app import MetricRecord

    # In a simulation, clients' NumPy scalars arrive as they are; a record takes Python's.
    plain = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in metrics.items()
    }
    # A truth value is an int to Python, and no number here.
    return MetricRecord({key: value for key, value in plain.items() if type(value) in (int, float)})


def _number(record: MetricRecord, key: str) -> float | None:
    value = record.get(key)
    return None if value is None or isinstance(value, list) else float(value)


def _possible(number: float | None) -> bool:
    return number is None or 0 <= number < math.inf


def _weight(record: MetricRecord, weighted_by_key: str) -> float:
    weight = _number(record, weighted_by_key)
    if weight is None or not _possible(weight):
        raise ValueError(
            f"an evaluation reply has {weighted_by_key!r} = {record.get(weighted_by_key)} among "
            f"{sorted(record)}, which cannot weight an average: let every client report a finite "
            'number of at least 0, or name the right one: weighted_by_key="..." of the strategy'
        )
    return weight
