"""``comparison.md``: the whole comparison as a page, with links to its plots."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from fedpw_flwr.lab.compare.compared import ComparedSetting
from fedpw_flwr.lab.compare.csv_files import COLUMN_NOTES
from fedpw_flwr.lab.compare.formats import percent
from fedpw_flwr.lab.compare.labels import counted, held_images, local_training
from fedpw_flwr.lab.compare.runs import LeftOutRun
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.compare.statistics import (
    chance_accuracy,
    chance_limit,
    near_chance,
)
from fedpw_flwr.lab.compare.tables import (
    Table,
    differences_table,
    figures_table,
    mean_of,
    target_table,
)
from fedpw_flwr.lab.runs.run_folder import atomic_file

__all__ = ["write_markdown"]

HOW_TO_READ = (
    "Accuracies are in percent. *a ± b* is mean and standard deviation (ddof = 1) over seeds; "
    "STD is the standard deviation (ddof = 1) over domains or clients, in points. **Bold**: the "
    "best mean of its column, which need not be better than the others by more than chance."
)


def write_markdown(
    path: Path, compared: Sequence[ComparedSetting], left_out: Sequence[LeftOutRun]
) -> None:
    """Write the page.

    Parameters
    ----------
    path : Path
        The file; links are relative to its folder.
    compared : Sequence[ComparedSetting]
        At least one setting.
    left_out : Sequence[LeftOutRun]
        Runs that are in no table; the page begins with them.
    """
    text = "\n\n".join(_page(path.parent, compared, left_out))
    with atomic_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8", newline="\n")


def _page(
    folder: Path, compared: Sequence[ComparedSetting], left_out: Sequence[LeftOutRun]
) -> Iterator[str]:
    runs = sum(len(each.setting.runs) for each in compared)
    yield f"# Comparison of {counted(runs, 'run')}"
    yield HOW_TO_READ
    if left_out:
        yield from _left_out(folder, left_out)
    for each in compared:
        yield from _setting(folder, each)
    yield "## Columns of comparison.csv"
    yield "\n".join(f"* `{name}`: {note}" for name, note in COLUMN_NOTES.items())
    yield (
        "`differences.csv` has a row for each difference to a reference method: mean and standard "
        "deviation over the common seeds, and the p-values."
    )


def _left_out(folder: Path, left_out: Sequence[LeftOutRun]) -> Iterator[str]:
    counts = Counter(run.status for run in left_out)
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    yield f"**Left out: {counted(len(left_out), 'run')}** ({said})."
    # Messages name files by their whole path, which nobody else has.
    rows = tuple(
        (_relative(run.path, folder), run.status, run.reason.replace(f"{run.path}/", ""))
        for run in left_out
    )
    yield _table(Table(("run", "why", "what happened"), rows), figures=False)


def _setting(folder: Path, each: ComparedSetting) -> Iterator[str]:
    setting = each.setting
    yield f"## {_plain(setting.label)}"
    yield from _experiment(each)
    yield from _circumstances(setting)
    for window in each.windows:
        yield f"### Global model on {_test_sets(setting)}, {window.label}"
        yield _table(figures_table(setting, setting.domain_figures, window))
    if setting.client_figures:
        for window in each.windows:
            yield f"### Global model on every client's own test data, {window.label}"
            yield _table(figures_table(setting, setting.client_figures, window))
    yield from _differences(each)
    if math.isfinite(each.target):
        yield f"### Rounds to a mean accuracy of {percent(each.target, 2)}"
        yield f"{each.target_note} The first round at or above it: {mean_of(setting)}."
        yield _table(target_table(setting, each.target))
    for plot, caption in each.plots.items():
        yield f"![{_plain(caption)}]({quote(_relative(plot, folder))})"
        yield f"*{_plain(caption)}*"


def _differences(each: ComparedSetting) -> Iterator[str]:
    if each.reference is None:
        yield "The method that others were to be compared with was not run in this setting."
        return
    if len(each.setting.methods) == 1:
        return
    for window in each.windows:
        yield f"### Difference to {_plain(each.reference.label)}, {window.label}"
        yield _table(differences_table(each.setting, each.reference, window))


def _experiment(each: ComparedSetting) -> Iterator[str]:
    """Write what the label leaves out."""
    setting = each.setting
    parts = (local_training(setting.runs[0]), held_images(setting.runs))
    if any(parts):
        yield _plain(" ".join(part for part in parts if part))
    chance = chance_accuracy(setting)
    if math.isfinite(chance):
        yield f"Chance: {percent(chance)} ({setting.classes} classes)."
    near = pd.concat([near_chance(setting, window) for window in each.windows], axis=1).any(axis=1)
    lost = list(near.index[near])
    if lost:
        yield (
            f"**Near chance**, a mean accuracy of at most {percent(chance_limit(setting))}: "
            f"{_plain(', '.join(lost))}. Such a model fails everyone alike, so a low STD is no "
            "merit: these methods are marked, and not ranked, in the tables of the rounds for "
            "which that holds."
        )


def _circumstances(setting: Setting) -> Iterator[str]:
    """Write what could make the methods' figures differ beside the methods."""
    seeds = {method.label: tuple(method.runs) for method in setting.methods}
    if len(set(seeds.values())) == 1:
        yield f"Seeds: {_listed(next(iter(seeds.values())))}."
    else:
        yield "**Methods were run with different seeds**: " + "; ".join(
            f"{_plain(label)}: {_listed(own)}" for label, own in seeds.items()
        )
    versions: dict[str, set[str]] = {}
    for run in setting.runs:
        for package, version in run.summary.versions.items():
            versions.setdefault(package, set()).add(str(version))
    if versions:
        differ = any(len(found) > 1 for found in versions.values())
        said = ", ".join(
            f"{package} {' and '.join(sorted(found))}" for package, found in versions.items()
        )
        yield ("**Runs of different versions**: " if differ else "Versions: ") + said + "."
    unknown = sum(run.summary.data_digest is None for run in setting.runs)
    if 0 < unknown < len(setting.runs):
        yield (
            f"**Not all runs recorded which images they stood on**: {unknown} of "
            f"{counted(len(setting.runs), 'run')} did not, and may stand on others."
        )
    states = Counter(run.summary.package or "not recorded" for run in setting.runs)
    if len(states) > 1:
        yield (
            "**Made by more than one state of the package**: "
            + ", ".join(
                f"{state} ({counted(count, 'run')})" for state, count in sorted(states.items())
            )
            + "."
        )
    lost = [
        f"{method.label}, seed {seed}: {run.summary.quarantined} replies that could not be used, "
        f"{run.summary.failed} failed clients"
        for method in setting.methods
        for seed, run in method.runs.items()
        if run.summary.quarantined or run.summary.failed
    ]
    if lost:
        yield f"**Left out of rounds**: {_plain('; '.join(lost))}."


def _table(table: Table, *, figures: bool = True) -> str:
    align = ["---"] + ["--:" if figures else "---"] * (len(table.columns) - 1)
    lines = [_row(table.columns), _row(align, plain=False)]
    for place, row in enumerate(table.rows):
        cells = [
            f"**{_plain(cell)}**" if (place, column) in table.best else _plain(cell)
            for column, cell in enumerate(row)
        ]
        lines.append(_row(cells, plain=False))
    notes = [_plain(note) for note in table.notes]
    return "\n".join([*lines, *(["", " ".join(notes)] if notes else [])])


def _row(cells: Sequence[str], *, plain: bool = True) -> str:
    return "| " + " | ".join(_plain(cell) if plain else cell for cell in cells) + " |"


def _plain(text: str) -> str:
    """Keep names from being read as Markdown: a bar would end a cell, stars would be emphasis."""
    one_line = " ".join(text.split())
    # An underscore inside a word is none.
    return re.sub(r"[\\|*`\[\]$]|<(?=[A-Za-z/!?])|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", one_line)


def _test_sets(setting: Setting) -> str:
    return "every domain's test set" if len(setting.domains) > 1 else "the test set"


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)
