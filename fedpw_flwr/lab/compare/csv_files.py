"""``comparison.csv`` and ``differences.csv``: the same figures for a spreadsheet or pandas."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from fedpw_flwr.lab.compare.compared import ComparedSetting
from fedpw_flwr.lab.compare.statistics import (
    chance_accuracy,
    over_seeds,
    paired_differences,
    rounds_to_target,
)
from fedpw_flwr.lab.compare.tables import tested_figures
from fedpw_flwr.lab.runs.run_folder import atomic_file

__all__ = ["COLUMN_NOTES", "write_comparison_csv", "write_differences_csv"]

COLUMN_NOTES: Mapping[str, str] = {
    "kind": "`run`: one run; `method`: a method over its seeds",
    "setting, method, strategy": "what it belongs to, as in the tables; the strategy's own name",
    "seed, folder": "of a run (relative to this file; of a packed run: where tar would unpack it)",
    "seeds": "how many seeds the row stands for",
    "rounds, seconds": "number of the last round; wall-clock time of all rounds (method: mean)",
    "chance": "accuracy in % of guessing, where the number of classes is known",
    "target": "mean accuracy in % that is to be reached",
    "reached": "how many of the seeds reached it",
    "rounds_to_target": "the first round at or above it (method: mean, where all seeds reached it)",
    "WINDOW.FIGURE": (
        "a figure in %, points or degrees: WINDOW is `last_round` or `last_N_rounds` (N: no more "
        "than the setting's rounds); FIGURE is "
        "`accuracy.DOMAIN`, `domains.mean` (AVG), `domains.std`, `domains.worst`, or `clients.…` "
        "on the clients' own test data (method: mean over seeds)"
    ),
    "WINDOW.FIGURE.sd": "its standard deviation over seeds (ddof = 1), of a method",
}
"""What the columns of ``comparison.csv`` hold; an empty cell is a figure that there is not."""

_DIGITS = 6

_COLUMNS = (
    *("kind", "setting", "method", "strategy", "seed", "seeds", "rounds", "seconds", "folder"),
    *("chance", "target", "reached", "rounds_to_target"),
)


def write_comparison_csv(path: Path, compared: Sequence[ComparedSetting]) -> None:
    """Write one row a method and one a run, in percent.

    Parameters
    ----------
    path : Path
        The file.
    compared : Sequence[ComparedSetting]
        What was compared.
    """
    _write(path, [_setting_rows(each, path.parent) for each in compared])


def write_differences_csv(path: Path, compared: Sequence[ComparedSetting]) -> None:
    """Write one row a method, window and figure: the paired difference to the reference.

    Parameters
    ----------
    path : Path
        The file.
    compared : Sequence[ComparedSetting]
        What was compared; a setting without a reference has no rows.
    """
    found = (
        paired_differences(each.setting, each.reference, each.windows, tested_figures(each.setting))
        for each in compared
        if each.reference is not None
    )
    _write(path, [rows for rows in found if len(rows)])


def _setting_rows(each: ComparedSetting, beside: Path) -> pd.DataFrame:
    setting = each.setting
    reached = rounds_to_target(setting, each.target)
    runs = pd.DataFrame(
        {
            "kind": "run",
            "seed": reached.index.get_level_values("seed"),
            "seeds": 1,
            "rounds": [run.summary.rounds for run in setting.runs],
            "seconds": [run.summary.seconds for run in setting.runs],
            "folder": [os.path.relpath(run.path, beside) for run in setting.runs],
            "reached": reached.notna().astype(int),
            # A run reaches the target in a whole round, a method in a mean of rounds.
            "rounds_to_target": reached.astype("Int64").astype(object),
        },
        index=reached.index,
    )
    by_method = runs.groupby("method", sort=False)
    methods = pd.DataFrame(
        {
            "kind": "method",
            "seeds": by_method.size(),
            "rounds": setting.rounds,
            "seconds": by_method["seconds"].mean(skipna=False),
            "reached": by_method["reached"].sum(),
            "rounds_to_target": over_seeds(reached)[0].round(_DIGITS).astype(object),
        }
    )
    columns = [*_COLUMNS]
    for window in each.windows:
        values = window.of(setting.rounds_of_runs)
        mean, std = over_seeds(values)
        for figure in (*setting.domain_figures, *setting.client_figures):
            name = f"{window.key}.{figure.key}"
            columns += [name, f"{name}.sd"]
            runs[name] = values[figure.key]
            methods[name], methods[f"{name}.sd"] = mean[figure.key], std[figure.key]
    parts = [
        part.loc[[method.label]].assign(method=method.label, strategy=method.strategy)
        for method in setting.methods
        for part in (methods, runs)
    ]
    fixed = {"setting": setting.label, "chance": chance_accuracy(setting), "target": each.target}
    return pd.concat(parts).astype({"seed": "Int64"}).assign(**fixed)[columns]


def _write(path: Path, parts: Sequence[pd.DataFrame]) -> None:
    rows = pd.concat(parts) if parts else pd.DataFrame()
    with atomic_file(path) as partial:
        rows.round(_DIGITS).to_csv(partial, index=False, lineterminator="\n")
