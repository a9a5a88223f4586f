"""A run's figures round by round, as a frame: all that tables and plots need of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fedpw_flwr.fairness import fairness_report
from fedpw_flwr.lab.compare.figures import CLIENT_FIGURES, DOMAIN_FIGURES, accuracy_of
from fedpw_flwr.lab.runs.records import RoundRecord

__all__ = ["ACCURACY", "CLIENT_WEIGHT", "DOMAIN_WEIGHT", "history_of"]

ACCURACY = accuracy_of("").key
DOMAIN_WEIGHT, CLIENT_WEIGHT = "domain_weight.", "client_weight."


def history_of(records: Sequence[RoundRecord]) -> pd.DataFrame:
    """Compute the figures of rounds that were recorded in this order.

    Parameters
    ----------
    records : Sequence[RoundRecord]
        R rounds of a run; round 0 is the initial model.

    Returns
    -------
    pd.DataFrame
        One row a round, by its number. The columns are figures by `Figure.key`: accuracies in
        percent, standard deviations in points, angles in degrees; and weights in units of the
        equal share 1/N of the round's N participants: ``domain_weight.DOMAIN``, the mean share of
        the domain's participants, and the ``client_weight.largest``, ``median`` and ``smallest``
        share. NaN where a round has no such figure. A column is missing where no round can have
        it: those over clients where no client has test images, those of weights where no round
        recorded its clients, and all over domains but the mean where there is one domain.
    """
    rounds = pd.Index([record.round for record in records], name="round")
    rows = [_domains(record) | _clients(record) | _weights(record) for record in records]
    history = pd.DataFrame(rows, index=rounds, dtype=np.float64)
    one_domain = history.columns.str.startswith(ACCURACY).sum() == 1
    return history.drop(columns=[each.key for each in DOMAIN_FIGURES[1:]] if one_domain else [])


def _domains(record: RoundRecord) -> dict[str, float]:
    own = {accuracy_of(domain).key: 100 * value for domain, value in record.accuracy.items()}
    spread = record.spread
    return own | {
        figure.key: 100 * getattr(spread, figure.key.removeprefix("domains."))
        for figure in DOMAIN_FIGURES
    }


def _clients(record: RoundRecord) -> dict[str, float]:
    accuracy = record.client_accuracy
    if accuracy is None:
        return {}
    # A client without a figure makes all of them unknown: leaving it out would report a better
    # worst client than there was.
    if not accuracy or not all(map(math.isfinite, accuracy)):
        return {figure.key: math.nan for figure in CLIENT_FIGURES}
    report = fairness_report(accuracy).to_dict()
    return {
        figure.key: report[figure.key.removeprefix("clients.")] * (1 if figure.unit == "°" else 100)
        for figure in CLIENT_FIGURES
    }


def _weights(record: RoundRecord) -> dict[str, float]:
    clients = record.clients
    if clients is None or not clients.weight:
        return {}
    # Times the number of participants, so that rounds of any size compare.
    shares = np.asarray(clients.weight_shares, dtype=np.float64) * len(clients.weight)
    domain_of = np.array(clients.domain)
    of_domains = {each: shares[domain_of == each].mean() for each in dict.fromkeys(clients.domain)}
    ends = {"largest": shares.max(), "median": np.median(shares), "smallest": shares.min()}
    return {
        **{f"{DOMAIN_WEIGHT}{domain}": float(share) for domain, share in of_domains.items()},
        **{f"{CLIENT_WEIGHT}{name}": float(share) for name, share in ends.items()},
    }
