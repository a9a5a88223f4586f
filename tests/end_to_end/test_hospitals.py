"""Hospitals as runs of the command: rows of a table, two classes, a division for each seed."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from support.commands import typed
from support.hospitals import HOSPITALS, write_hospitals

from fedpw_flwr.lab.runs.run_folder import RunFolder

pytestmark = pytest.mark.long


def test_hospitals_are_trained_tested_and_compared_over_divisions(tmp_path: Path) -> None:
    write_hospitals(tmp_path / "heart")
    words = (
        *("experiment=heart_disease", "dataset.folder=heart", "client.learning_rate=0.05"),
        *("rounds=6", "seed=0,1", "strategy=fedavg,fedpw"),
    )
    typed("fedpw", "-m", *words, folder=tmp_path)

    runs = [RunFolder(file.parent) for file in (tmp_path / "multirun").glob("*/summary.json")]
    summaries = [run.read_summary() for run in runs]
    assert len(runs) == 4
    for summary in summaries:
        assert summary.accuracy.keys() == HOSPITALS.keys()
        assert summary.auc is not None
        assert summary.auc.keys() == HOSPITALS.keys()
        assert summary.pooled_auc is not None
        assert 0.7 < summary.pooled_auc <= 1
    # Each seed divides the patients in its own way; methods of one seed compare on one division.
    assert len({(summary.seed, summary.data_digest) for summary in summaries}) == 2
    assert len({summary.data_digest for summary in summaries}) == 2

    (table,) = (tmp_path / "multirun").glob("*/comparison.csv")
    compared = pd.read_csv(table)
    assert compared["setting"].nunique() == 1
    methods = compared[compared["kind"] == "method"]
    assert methods["seeds"].tolist() == [2, 2]
    assert (methods["last_5_rounds.aucs.mean"] > 70).all()

    # What a run's model does, it does again on the division of its own seed.
    run = next(run for run, one in zip(runs, summaries, strict=True) if one.seed == 1)
    printed = typed("fedpw-evaluate", run.path, "--json", folder=tmp_path).stdout
    assert json.loads(printed)["accuracy"] == run.read_summary().accuracy
    assert json.loads(printed)["auc"] == run.read_summary().auc


def test_a_model_that_does_not_take_rows_is_refused_before_training(tmp_path: Path) -> None:
    write_hospitals(tmp_path)
    words = ("experiment=heart_disease", f"dataset.folder={tmp_path}", "model=cnn")
    refused = typed("fedpw", *words, folder=tmp_path, status=1)
    said = refused.stdout + refused.stderr
    assert "model: it does not take examples of shape (35,)" in said
    assert "for rows of a table choose mlp or logistic" in said
