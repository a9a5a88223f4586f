"""``comparison.csv`` and ``differences.csv``: the same figures for a spreadsheet or pandas."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedpw_flwr.experiment.comparison.compared import ComparedSetting
from fedpw_flwr.experiment.comparison.settings import Method
from fedpw_flwr.experiment.comparison.statistics import (
    OverSeeds,
    chance_accuracy,
    over_seeds,
    paired_difference,
    rounds_to_target,
)
from fedpw_flwr.experiment.comparison.tables import tested_figures
from fedpw_flwr.experiment.run_folder import atomic_file

__all__ = ["COLUMN_NOTES", "write_comparison_csv", "write_differences_csv"]

Row = dict[str, str | int | float]

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


def write_comparison_csv(path: Path, compared: Sequence[ComparedSetting]) -> None:
    """Write one row a method and one a run, in percent.

    Parameters
    ----------
    path : Path
        The file.
    compared : Sequence[ComparedSetting]
        What was compared.
    """
    rows: list[Row] = []
    for each in compared:
        for method in each.setting.methods:
            rows.append(_method_row(each, method))
            rows += _run_rows(each, method, path.parent)
    _write(path, rows)


def write_differences_csv(path: Path, compared: Sequence[ComparedSetting]) -> None:
    """Write one row a method, window and figure: the paired difference to the reference.

    Parameters
    ----------
    path : Path
        The file.
    compared : Sequence[ComparedSetting]
        What was compared; a setting without a reference has no rows.
    """
    rows: list[Row] = []
    for each in compared:
        setting, reference = each.setting, each.reference
        for method in setting.methods:
            if reference is None or method is reference:
                continue
            for window in each.windows:
                for figure in tested_figures(setting):
                    found = paired_difference(method, reference, window, figure.key)
                    rows.append(
                        {
                            "setting": setting.label,
                            "method": method.label,
                            "reference": reference.label,
                            "window": window.key,
                            "figure": figure.key,
                            "unit": figure.unit,
                            "seeds": len(found.seeds),
                            "difference": _number(found.mean),
                            "difference.sd": _number(found.std),
                            "p_t": _number(found.p_t),
                            "p_wilcoxon": _number(found.p_wilcoxon),
                        }
                    )
    _write(path, rows)


def _method_row(each: ComparedSetting, method: Method) -> Row:
    setting = each.setting
    found = rounds_to_target(method, each.target)
    row: Row = {
        "kind": "method",
        "setting": setting.label,
        "method": method.label,
        "strategy": method.strategy,
        "seed": "",
        "seeds": len(method.runs),
        "rounds": setting.rounds,
        "seconds": _number(
            OverSeeds.of([run.summary.seconds for run in method.runs.values()]).mean
        ),
        "folder": "",
        "chance": _number(chance_accuracy(setting)),
        "target": _number(each.target),
        "reached": len(found.reached),
        "rounds_to_target": _number(found.mean),
    }
    for window in each.windows:
        for figure in (*setting.domain_figures, *setting.client_figures):
            value = over_seeds(method, window, figure.key)
            row[f"{window.key}.{figure.key}"] = _number(value.mean)
            row[f"{window.key}.{figure.key}.sd"] = _number(value.std)
    return row


def _run_rows(each: ComparedSetting, method: Method, beside: Path) -> Iterable[Row]:
    setting = each.setting
    reached = rounds_to_target(method, each.target).rounds
    for seed, run in method.runs.items():
        number = reached[seed]
        row: Row = {
            "kind": "run",
            "setting": setting.label,
            "method": method.label,
            "strategy": method.strategy,
            "seed": seed,
            "seeds": 1,
            "rounds": run.summary.rounds,
            "seconds": _number(run.summary.seconds),
            "folder": os.path.relpath(run.path, beside),
            "chance": _number(chance_accuracy(setting)),
            "target": _number(each.target),
            "reached": int(number is not None),
            "rounds_to_target": "" if number is None else number,
        }
        for window in each.windows:
            for figure in (*setting.domain_figures, *setting.client_figures):
                row[f"{window.key}.{figure.key}"] = _number(window.value(run, figure.key))
                row[f"{window.key}.{figure.key}.sd"] = ""
        yield row


def _write(path: Path, rows: Sequence[Row]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _number(value: float) -> float | str:
    return round(value, 6) if math.isfinite(value) else ""
