"""A run's figures survive their JSON form, and older files can still be read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from fedpw_flwr.lab.runs.records import ClientFigures, RoundRecord, RunSummary


def summary(**options: Any) -> RunSummary:
    records = [RoundRecord(number, 1.0, {"a": 0.5, "b": 0.7}, {"a": 1.0}) for number in range(2)]
    return RunSummary.of_run(records, config_text="", strategy="fedpw", seed=0, **options)


def test_a_summary_keeps_what_data_and_which_code_it_was_made_of() -> None:
    whole = summary(data_digest="ab" * 32, package="0.1.0+1a2b3c4d5e6f")
    again = RunSummary.from_json(json.loads(json.dumps(whole.to_json())))
    assert (again.data_digest, again.package) == ("ab" * 32, "0.1.0+1a2b3c4d5e6f")
    assert again == whole


def test_a_summary_of_an_older_version_is_read_without_them() -> None:
    older = summary().to_json()
    assert not {"data_digest", "package"} & older.keys()
    again = RunSummary.from_json(older)
    assert (again.data_digest, again.package) == (None, None)


def test_clients_left_out_are_counted_over_the_rounds_and_older_files_count_none_empty() -> None:
    counts = [(2, 1, 3), (0, 4, 3), (None, None, None)]
    rounds = [
        RoundRecord(number, 1.0, {"a": 0.5, "b": 1}, {}, quarantined=bad, failed=lost, empty=empty)
        for number, (bad, lost, empty) in enumerate(counts)
    ]
    assert [RoundRecord.from_json(one.to_json()) for one in rounds] == rounds
    whole = RunSummary.of_run(rounds, config_text="", strategy="fedpw", seed=0)
    assert (whole.quarantined, whole.failed, whole.empty) == (2, 5, 6)
    kept = whole.to_json()
    assert RunSummary.from_json(kept) == whole
    del kept["empty"]
    assert RunSummary.from_json(kept).empty == 0
    older = rounds[0].to_json()
    del older["empty"]
    assert RoundRecord.from_json(older).empty is None


def test_shares_of_weights_sum_to_one_whatever_the_weights_sum_to() -> None:
    assert ClientFigures([0, 1], ["a", "b"], [0.3, 0.1]).weight_shares == pytest.approx(
        [0.75, 0.25]
    )
    # Weights that were not clipped.
    assert ClientFigures([0, 1], ["a", "b"], [1.5, -0.5]).weight_shares == [1.5, -0.5]


@pytest.mark.parametrize("weight", [[0.0, 0.0], [0.5, -0.5], [0.5, math.nan], [0.5, math.inf], []])
def test_there_are_no_shares_of_a_sum_that_is_no_positive_number(weight: list[float]) -> None:
    clients = ClientFigures(list(range(len(weight))), ["a"] * len(weight), weight)
    assert len(clients.weight_shares) == len(weight)
    assert all(map(math.isnan, clients.weight_shares))
