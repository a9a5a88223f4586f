"""The tables of a comparison: as text for the page and the terminal, and as CSV files.

``comparison.csv`` and ``differences.csv`` have the same figures for a spreadsheet or pandas.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fedpw_flwr.files import atomic_file
from fedpw_flwr.lab.compare.figures import CLIENT_FIGURES, Figure
from fedpw_flwr.lab.compare.settings import Method, Setting
from fedpw_flwr.lab.compare.statistics import (
    FEWEST_FOR_WILCOXON,
    LAST_ROUND,
    LEVEL,
    Window,
    holm_corrected,
    near_chance,
    over_seeds,
    paired_differences,
    rounds_to_target,
)
from fedpw_flwr.lab.runs.written import number

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
        "`accuracy.DOMAIN`, `domains.mean` (AVG), `domains.std`, `domains.worst`, `auc.DOMAIN`, "
        "`aucs.mean`, `aucs.pooled` (areas under the ROC curve, of two classes), or `clients.…` "
        "on the clients' own test data (method: mean over seeds)"
    ),
    "WINDOW.FIGURE.sd": "its standard deviation over seeds (ddof = 1), of a method",
}
"""What the columns of ``comparison.csv`` hold; an empty cell is a figure that there is not."""

_DIGITS = 6


@dataclass(frozen=True, eq=False)
class ComparedSetting:
    """A setting with all that was decided about it before anything is written."""

    setting: Setting
    windows: tuple[Window, ...]
    reference: Method | None  # that the others are compared with; None if it was not run here
    target: float  # mean accuracy in percent that methods race to; NaN where there is none
    target_note: str  # where the target comes from
    plots: Mapping[Path, str]  # captions by the plots' files


@dataclass(frozen=True)
class Table:
    """A table of text, whose first column holds names and all others figures."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()  # row and column of their columns' best cells
    notes: tuple[str, ...] = ()  # what one has to know to read it, a sentence each


def figures_table(setting: Setting, figures: Sequence[Figure], window: Window) -> Table:
    """Tabulate figures of all methods, over their seeds.

    A method near chance is marked and never the best of a column. A column in which all are equal
    has no best.
    """
    keys = [figure.key for figure in figures]
    mean, std = over_seeds(window.of(setting))
    cells = [
        [number(value, std=spread) for value, spread in zip(mean[key], std[key], strict=True)]
        for key in keys
    ]
    # Ranked as shown, so that cells which read alike are the best alike.
    signs = [1 if figure.higher_is_better else -1 for figure in figures]
    shown = mean[keys].map(lambda value: round(value, 2)) * signs
    seeds = [str(len(method.runs)) for method in setting.methods]
    return Table(
        ("method", "seeds", *map(figure_heading, figures)),
        tuple(zip(_names(setting, window), seeds, *cells, strict=True)),
        _best(shown.mask(near_chance(setting, window))),
    )


def differences_table(setting: Setting, reference: Method, window: Window) -> Table:
    """Tabulate each method's difference to the reference, seed by seed, with paired tests."""
    figures = [figure for figure in setting.figures if figure.tested]
    found = paired_differences(setting, reference, [window])
    found["cell"] = found.apply(_difference, axis=1)
    by_method = found.groupby("method", sort=False)
    seeds = by_method["seeds"].max()
    return Table(
        ("method", "common seeds", *(figure_heading(each, of_whom=True) for each in figures)),
        tuple(
            (name, str(seeds[label]), *by_method.get_group(label)["cell"])
            for label, name in _names(setting, window).drop(reference.label).items()
        ),
        notes=_test_notes(seeds, found["p_t"].dropna().tolist(), setting.overlap),
    )


def target_table(setting: Setting, target: float) -> Table:
    """Tabulate the round in which each seed first reached a mean accuracy in percent."""
    found = rounds_to_target(setting, target)
    mean, std = over_seeds(found)
    names = _names(setting, LAST_ROUND)
    rows = [
        (
            names[label],
            f"{own.count()} of {len(own)}",
            number(mean[label], 1, std=std[label]),
            ", ".join("not reached" if np.isnan(each) else number(each, 0) for each in own),
        )
        for label, own in found.groupby("method", sort=False)
    ]
    return Table(
        ("method", "seeds that reached it", "rounds", "each seed"),
        tuple(rows),
        _best(-mean.mask(near_chance(setting, LAST_ROUND)).to_frame()),
        ("The mean is given only where all seeds reached the target.",),
    )


def write_csv_files(folder: Path, compared: Sequence[ComparedSetting]) -> tuple[Path, Path]:
    """Write one row a method and one a run, in percent; and the differences to the references."""
    comparison, differences = folder / "comparison.csv", folder / "differences.csv"
    _write(comparison, [_setting_rows(each, folder) for each in compared])
    found = [
        paired_differences(each.setting, each.reference, each.windows)
        for each in compared
        if each.reference is not None and len(each.setting.methods) > 1
    ]
    _write(differences, found)
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


def mean_of(setting: Setting) -> str:
    """Return what the mean accuracy is that methods race to."""
    several = len(setting.domains) > 1
    return "mean over the domains' test sets" if several else "accuracy on the test set"


def figure_heading(figure: Figure, *, of_whom: bool = False) -> str:
    """Name a column; `of_whom` tells clients' figures from the domains' in a table with both."""
    whose = "clients' " if of_whom and figure in CLIENT_FIGURES else ""
    return f"{whose}{figure.label}" + (", °" if figure.unit == "°" else "")


def _names(setting: Setting, window: Window) -> pd.Series:
    near = near_chance(setting, window)
    return near.index.to_series() + near.map({True: " (near chance)", False: ""})


def _best(ranked: pd.DataFrame) -> frozenset[tuple[int, int]]:
    """Find the highest cell of each column, ties too, in a table that begins with two others."""
    if len(ranked) == 1:
        return frozenset()
    level = (ranked.count() > 1) & (ranked.max() == ranked.min())
    rows, columns = np.nonzero((ranked == ranked.max()) & ~level)
    return frozenset(zip(rows.tolist(), (columns + 2).tolist(), strict=True))


def _difference(found: pd.Series) -> str:
    tests = [
        f"{name} < 0.001" if value < 0.001 else f"{name} = {number(value, 3)}"
        for name, value in (("p", found["p_t"]), ("W", found["p_wilcoxon"]))
        if np.isfinite(value)
    ]
    text = number(found["difference"], sign=True)
    if not tests:
        return text
    low, high = found["difference"] - found["margin"], found["difference"] + found["margin"]
    return f"{text} [{number(low)}, {number(high)}] ({', '.join(tests)})"


def _test_notes(seeds: pd.Series, p_values: Sequence[float], overlap: float) -> tuple[str, ...]:
    if not p_values:
        return ("No p-values: they take two common seeds or more, and differences that vary.",)
    common = " to ".join(map(str, sorted({seeds.min(), seeds.max()})))
    below, left = (sum(p < LEVEL for p in found) for found in (p_values, holm_corrected(p_values)))
    resampled = ", corrected for divisions that overlap (Nadeau and Bengio 2003)"
    paired = (
        f"In brackets: 95 % confidence interval. p: two-sided paired t-test over {common} common "
        f"seeds{resampled if overlap else ''}, not corrected for the number of "
        f"comparisons. Of {len(p_values)} in this table {below or 'none'} "
        f"{'is' if below <= 1 else 'are'} below {LEVEL}, and {left or 'none'} after Holm's "
        "correction."
    )
    if overlap or seeds.max() < FEWEST_FOR_WILCOXON:
        return (paired,)
    return paired, f"W: Wilcoxon's signed-rank test, from {FEWEST_FOR_WILCOXON} seeds on."
