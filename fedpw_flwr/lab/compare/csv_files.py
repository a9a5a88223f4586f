"""``comparison.csv`` and ``differences.csv``: the same figures for a spreadsheet or pandas."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from fedpw_flwr.lab.compare.statistics import over_seeds, paired_differences, rounds_to_target
from fedpw_flwr.lab.compare.tables import ComparedSetting
from fedpw_flwr.lab.runs.run_folder import atomic_file

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


def write_csv_files(folder: Path, compared: Sequence[ComparedSetting]) -> tuple[Path, Path]:
    """Write one row a method and one a run, in percent; and the differences to the references."""
    comparison, differences = folder / "comparison.csv", folder / "differences.csv"
    _write(comparison, [_setting_rows(each, folder) for each in compared])
    found = (
        paired_differences(each.setting, each.reference, each.windows)
        for each in compared
        if each.reference is not None
    )
    _write(differences, [rows for rows in found if len(rows)])
    return comparison, differences


def _setting_rows(each: ComparedSetting, folder: Path) -> pd.DataFrame:
    setting = each.setting
    reached = rounds_to_target(setting, each.target)
    runs = pd.DataFrame(
        {
            "kind": "run",
            "setting": setting.label,
            "method": reached.index.get_level_values("method"),
            "strategy": [method.strategy for method in setting.methods for _ in method.runs],
            "seed": reached.index.get_level_values("seed").astype("Int64"),
            "seeds": 1,
            "rounds": [run.summary.rounds for run in setting.runs],
            "seconds": [run.summary.seconds for run in setting.runs],
            "folder": [os.path.relpath(run.path, folder) for run in setting.runs],
            "chance": setting.chance,
            "target": each.target,
            "reached": reached.notna().astype(int),
            # A run reaches the target in a whole round, a method in a mean of rounds.
            "rounds_to_target": reached.astype("Int64").astype(object),
        },
        index=reached.index,
    )
    by_method = runs.groupby(level="method", sort=False)
    methods = by_method.first().assign(
        kind="method",
        seed=pd.NA,
        seeds=by_method.size(),
        seconds=by_method["seconds"].mean(skipna=False),
        folder=None,
        reached=by_method["reached"].sum(),
        rounds_to_target=over_seeds(reached)[0].round(_DIGITS).astype(object),
    )
    figures = [figure.key for figure in setting.figures]
    for window in each.windows:
        values = window.of(setting)[figures].add_prefix(f"{window.key}.")
        mean, std = over_seeds(values)
        for name in values:
            runs[name], runs[f"{name}.sd"] = values[name], math.nan
            methods[name], methods[f"{name}.sd"] = mean[name], std[name]
    parts = [part.loc[[method.label]] for method in setting.methods for part in (methods, runs)]
    return pd.concat(parts)


def _write(path: Path, parts: Sequence[pd.DataFrame]) -> None:
    rows = pd.concat(parts) if parts else pd.DataFrame()
    with atomic_file(path) as partial:
        rows.round(_DIGITS).to_csv(partial, index=False, lineterminator="\n")
