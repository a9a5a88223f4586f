"""A run's figures survive their JSON form, and older files can still be read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from fedpw_flwr.lab.runs.records import ClientFigures, RoundRecord, RunSummary


def test_a_summary_comes_back_and_one_of_an_older_version_lacks_what_it_did_not_keep() -> None:
    counts = [(2, 1, 3), (0, 4, 3), (None, None, None)]
    rounds = [
        RoundRecord(number, 1.0, {"a": 0.5, "b": 1}, {}, quarantined=bad, failed=lost, empty=empty)
        for number, (bad, lost, empty) in enumerate(counts)
    ]
    options: dict[str, Any] = {"data_digest": "ab" * 32, "package": "0.1.0+1a2b3c4d5e6f"}
    whole = RunSummary.of_run(rounds, config_text="", strategy="fedpw", seed=0, **options)
    assert (whole.quarantined, whole.failed, whole.empty) == (2, 5, 6)
    kept = json.loads(json.dumps(whole.to_json()))
    assert RunSummary.from_json(kept) == whole
    for key in ("failed", "empty", *options):
        del kept[key]
    assert RunSummary.from_json(kept) == replace(
        whole, failed=0, empty=0, data_digest=None, package=None
    )


@pytest.mark.parametrize(
    ("weights", "shares"),
    [([0.3, 0.1], [0.75, 0.25]), ([1.5, -0.5], [1.5, -0.5])],  # the second were not clipped
)
def test_shares_of_weights_sum_to_one_whatever_the_weights_sum_to(
    weights: list[float], shares: list[float]
) -> None:
    assert ClientFigures([0, 1], ["a", "b"], weights).weight_shares == pytest.approx(shares)


@pytest.mark.parametrize("weight", [[0.0, 0.0], [0.5, -0.5], [0.5, math.nan], [0.5, math.inf], []])
def test_there_are_no_shares_of_a_sum_that_is_no_positive_number(weight: list[float]) -> None:
    clients = ClientFigures(list(range(len(weight))), ["a"] * len(weight), weight)
    assert len(clients.weight_shares) == len(weight)
    assert all(map(math.isnan, clients.weight_shares))
