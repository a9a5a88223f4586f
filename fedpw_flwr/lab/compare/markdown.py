"""``comparison.md``: the whole comparison as a page, with links to its plots."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pandas as pd

from fedpw_flwr.files import atomic_file
from fedpw_flwr.lab.compare.figures import MEAN_AUC
from fedpw_flwr.lab.compare.runs import FinishedRun, LeftOutRun
from fedpw_flwr.lab.compare.settings import Setting, counted, written
from fedpw_flwr.lab.compare.statistics import near_chance, near_chance_bound
from fedpw_flwr.lab.compare.tables import (
    COLUMN_NOTES,
    ComparedSetting,
    Table,
    differences_table,
    figures_table,
    mean_of,
    target_table,
)
from fedpw_flwr.lab.runs.written import percent

HOW_TO_READ = (
    "Accuracies are in percent. *a ± b* is mean and standard deviation (ddof = 1) over seeds; "
    "STD is the standard deviation (ddof = 1) over domains or clients, in points. **Bold**: the "
    "best mean of its column, which need not be better than the others by more than chance."
)

_TRAINING: Mapping[str, Callable[[Any], str]] = {
    "epochs": lambda value: counted(value, "epoch"),
    "batch_size": lambda value: f"batches of {written(value)}",
    "learning_rate": lambda value: f"SGD with learning rate {written(value)}",
    "momentum": lambda value: f"momentum {written(value)}",
    "weight_decay": lambda value: f"weight decay {written(value)}",
    "crop_padding": lambda value: f"crops padded by {counted(value, 'pixel')}" if value else "",
    "horizontal_flip": lambda value: "half of the images mirrored" if value else "",
    "precision": lambda value: "" if value == "float32" else str(value),
    # Compiled or not, the steps are the same.
    "compile": lambda _: "",
    "_target_": lambda _: "",
}

_LINK = re.compile(r"^!\[.*\]\((.+\.png)\)$", re.MULTILINE)


def write_markdown(
    path: Path, compared: Sequence[ComparedSetting], left_out: Sequence[LeftOutRun]
) -> None:
    """Write the page, which begins with the runs that are in no table."""
    text = "\n\n".join(_page(path.parent, compared, left_out))
    with atomic_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8", newline="\n")


def plots_of_page(page: Path) -> set[Path]:
    """Return the plots in and below a page's folder that it shows; none where there is no page.

    Other plots that lie there, such as a run's, are not the comparison's.
    """
    if not page.is_file():
        return set()
    folder = page.parent.resolve()
    links = _LINK.findall(page.read_text(encoding="utf-8", errors="replace"))
    shown = ((folder / unquote(link)).resolve() for link in links)
    return {plot for plot in shown if plot.is_relative_to(folder)}


def remove_plots(plots: Iterable[Path], folder: Path) -> None:
    """Remove plots, and the folders inside `folder` that are empty then."""
    for plot in plots:
        plot.unlink(missing_ok=True)
        if plot.parent != folder.resolve():
            # Not empty, or gone already.
            with contextlib.suppress(OSError):
                plot.parent.rmdir()


def local_training(run: FinishedRun) -> str:
    """Return how clients train, in words; empty where the configuration does not."""
    client = run.group("client")
    known = [_TRAINING[key](client[key]) for key in _TRAINING if client.get(key) is not None]
    others = [f"{key}={written(value)}" for key, value in client.items() if key not in _TRAINING]
    training = ", ".join(filter(None, (*known, *others)))
    normalisation = run.group("model").get("normalisation")
    sentences = [f"Local training: {training}."] if training else []
    if normalisation is not None:
        sentences.append(f"Normalisation of the network: {normalisation}.")
    return " ".join(sentences)


def held_examples(runs: Sequence[FinishedRun]) -> str:
    """Return how many examples clients hold, in words; empty where no run recorded it."""
    clients = [client for run in runs if run.holdings for client in run.holdings.clients]
    if not clients:
        return ""
    trains = _between([sum(client.train) for client in clients])
    tests = [sum(client.test) for client in clients]
    keeps = f", and keeps {_between(tests)} for testing" if any(tests) else ""
    word = "images" if "image_size" in runs[0].group("dataset") else "examples"
    return f"Each client trains on {trains} {word}{keeps}."


def _between(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _page(
    folder: Path, compared: Sequence[ComparedSetting], left_out: Sequence[LeftOutRun]
) -> Iterator[str]:
    runs = sum(len(each.setting.runs) for each in compared)
    yield f"# Comparison of {counted(runs, 'run')}"
    yield HOW_TO_READ
    if left_out:
        counts = Counter(run.status for run in left_out)
        statuses = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        yield f"**Left out: {counted(len(left_out), 'run')}** ({statuses})."
        # Messages name files by their whole path, which nobody else has.
        rows = tuple(
            (_relative(run.path, folder), run.status, run.reason.replace(f"{run.path}/", ""))
            for run in left_out
        )
        yield _table(Table(("run", "why", "what happened"), rows), align="---")
    for each in compared:
        yield from _setting(folder, each)
    yield "## Columns of comparison.csv"
    yield "\n".join(f"* `{name}`: {note}" for name, note in COLUMN_NOTES.items())
    yield (
        "`differences.csv` has a row for each difference to a reference method: mean and standard "
        "deviation over the common seeds, half of the 95 % confidence interval, the smallest "
        "difference that as many seeds detect with a probability of 80 %, and the p-values."
    )


def _setting(folder: Path, each: ComparedSetting) -> Iterator[str]:
    setting = each.setting
    yield f"## {_plain(setting.label)}"
    # What the label leaves out.
    if said := _plain(f"{local_training(setting.runs[0])} {held_examples(setting.runs)}"):
        yield said
    if setting.classes:
        yield f"Chance: {percent(setting.chance)} ({setting.classes} classes)."
    near = pd.concat([near_chance(setting, window) for window in each.windows], axis=1).any(axis=1)
    if near.any():
        figure, bound = near_chance_bound(setting)
        what = "mean AUC" if figure == MEAN_AUC else "mean accuracy"
        yield (
            f"**Near chance**, a {what} of at most {percent(bound)}: "
            f"{_plain(', '.join(near.index[near]))}. Such a model fails everyone alike, so a low "
            "STD is no merit: these methods are marked, and not ranked, in the tables of the "
            "rounds for which that holds."
        )
    yield from _circumstances(setting)
    test_sets = "every domain's test set" if len(setting.domains) > 1 else "the test set"
    for figures, tests in (
        (setting.domain_figures, test_sets),
        (setting.auc_figures, f"{test_sets}: area under the ROC curve"),
        (setting.client_figures, "every client's own test data"),
    ):
        for window in each.windows if figures else ():
            yield f"### Global model on {tests}, {window.label}"
            yield _table(figures_table(setting, figures, window))
    if each.reference is None:
        yield "The method that others were to be compared with was not run in this setting."
    elif len(setting.methods) > 1:
        for window in each.windows:
            yield f"### Difference to {_plain(each.reference.label)}, {window.label}"
            yield _table(differences_table(setting, each.reference, window))
    if math.isfinite(each.target):
        yield f"### Rounds to a mean accuracy of {percent(each.target, 2)}"
        yield f"{each.target_note} The first round at or above it: {mean_of(setting)}."
        yield _table(target_table(setting, each.target))
    for plot, caption in each.plots.items():
        yield f"![{_plain(caption)}]({quote(_relative(plot, folder))})"
        yield f"*{_plain(caption)}*"


def _circumstances(setting: Setting) -> Iterator[str]:
    """Write what could make the methods' figures differ beside the methods."""
    named = {
        f"{method.label}, seed {seed}": run
        for method in setting.methods
        for seed, run in method.runs.items()
    }
    # Seeds.
    seeds = {method.label: ", ".join(map(str, method.runs)) for method in setting.methods}
    if len(set(seeds.values())) == 1:
        yield f"Seeds: {seeds[setting.methods[0].label]}."
    else:
        each = "; ".join(f"{_plain(label)}: {own}" for label, own in seeds.items())
        yield f"**Methods were run with different seeds**: {each}"
    # Packages.
    versions: dict[str, set[str]] = {}
    for run in setting.runs:
        for package, version in run.summary.versions.items():
            versions.setdefault(package, set()).add(str(version))
    if versions:
        differ = any(len(found) > 1 for found in versions.values())
        listed = ", ".join(f"{name} {' and '.join(sorted(own))}" for name, own in versions.items())
        yield f"{'**Runs of different versions**' if differ else 'Versions'}: {_plain(listed)}."
    # Data.
    unknown = sum(run.summary.data_digest is None for run in setting.runs)
    if 0 < unknown < len(setting.runs):
        yield (
            f"**Not all runs recorded which images they stood on**: {unknown} of "
            f"{counted(len(setting.runs), 'run')} did not, and may stand on others."
        )
    # States of this package.
    states = Counter(run.summary.package or "not recorded" for run in setting.runs)
    if len(states) > 1:
        listed = ", ".join(f"{state} ({counted(states[state], 'run')})" for state in sorted(states))
        yield f"**Made by more than one state of the package**: {_plain(listed)}."
    # Rounds.
    early = [
        f"{name}: after round {run.summary.rounds} of {run.rounds}, {run.summary.stopped}"
        for name, run in named.items()
        if run.summary.stopped is not None
    ]
    if early:
        yield f"**Stopped early**, so that last rounds differ: {_plain('; '.join(early))}."
    # Clients.
    lost = [
        f"{name}: {run.summary.quarantined} replies that could not be used, "
        f"{run.summary.failed} failed clients"
        for name, run in named.items()
        if run.summary.quarantined or run.summary.failed
    ]
    if lost:
        yield f"**Left out of rounds**: {_plain('; '.join(lost))}."


def _table(table: Table, *, align: str = "--:") -> str:
    rows = [list(map(_plain, row)) for row in table.rows]
    for row, column in table.best:
        rows[row][column] = f"**{rows[row][column]}**"
    rule = ["---", *[align] * (len(table.columns) - 1)]
    lines = [f"| {' | '.join(row)} |" for row in (map(_plain, table.columns), rule, *rows)]
    notes = ["", " ".join(map(_plain, table.notes))] if table.notes else []
    return "\n".join([*lines, *notes])


def _plain(text: str) -> str:
    """Keep names from being read as Markdown: a bar would end a cell, stars would be emphasis."""
    one_line = " ".join(text.split())
    # An underscore inside a word is none.
    return re.sub(r"[\\|*`\[\]$]|<(?=[A-Za-z/!?])|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", one_line)


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
