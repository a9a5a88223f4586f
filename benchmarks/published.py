"""Run the experiments of RESULTS.md, compare them, and write it.

    python benchmarks/published.py --data DATA                  # all: about 12 hours of two cores
    python benchmarks/published.py --data DATA hospitals        # one of them
    python benchmarks/published.py --data DATA hospitals --only tuning
    python benchmarks/published.py --write                      # only the pages, of what there is

DATA is a folder of archives (mnist.npz, usps.npz, svhn.npz, mnistm.npz, fashion_mnist.npz) and of
heart/processed.cleveland.data and its like. results/protocol.md says what is done and why. Begun
again it runs only what is missing, so it may be stopped at any time, and go on in another clone:
the figures of every finished run are kept in results/NAME/runs.tar.xz, without its models.
RESULTS.md is made of these and of what is written by hand: results/answer.md, results/preface.md
and results/NAME/remarks.md.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from report import Table

from fedpw_flwr.lab.compare.command import compare
from fedpw_flwr.lab.compare.markdown import remove_plots
from fedpw_flwr.lab.compare.runs import FinishedRun, find_runs
from fedpw_flwr.lab.compare.statistics import LEVEL, holm_corrected
from fedpw_flwr.lab.runs.packed_runs import PACKED_FILES, PackedRun, pack_runs, packed_runs
from fedpw_flwr.lab.runs.run_folder import METRICS_FILE, SUMMARY_FILE, RunFolder
from fedpw_flwr.lab.runs.written import number

BENCHMARKS = Path(__file__).resolve().parent
REPOSITORY = BENCHMARKS.parent
PAGE = REPOSITORY / "RESULTS.md"
RESULTS = REPOSITORY / "results"
RUNS = REPOSITORY / "multirun" / "published"
KEPT, REMARKS = "runs.tar.xz", "remarks.md"
STAGES = ("rates", "tuning", "table")

TUNED_ON = (20, 21, 22)
"""Seeds that no table uses."""

LAST, WINDOW = 5, "last_5_rounds"
"""Figures are means of so many last rounds."""

LADDER = (20, 25, 30, 40, 50, 60, 80, 100, 120, 150, 200)
"""Numbers of rounds to choose among."""

LABELS = {
    "domains.mean": "AVG",
    "domains.std": "STD",
    "domains.worst": "worst",
    "aucs.mean": "mean AUC",
    "aucs.pooled": "pooled AUC",
    "clients.mean": "mean",
    "clients.std": "STD",
    "clients.worst_10": "worst 10 %",
}
"""Figures of RESULTS.md, as columns are called."""

CONVERGED = 0.5
"""Training has converged where the mean gains less, in points, in the last fifth of the rounds."""


@dataclass(frozen=True)
class Experiment:
    """A section of RESULTS.md: a setting, how its methods were tuned, and what was run on it."""

    name: str
    title: str
    setting: tuple[str, ...]
    """What all its runs have in common; DATA stands for the folder of the archives."""
    seeds: str
    """Of the table."""
    rates: str
    """Learning rates that FedAvg was tried with, for `longest` rounds."""
    longest: int
    learning_rate: float
    rounds: int
    """Chosen by `rates`: see `chosen_rate`."""
    methods: str
    """Those that have no setting to tune, FedPW with its defaults among them."""
    grids: Mapping[str, str] = field(default_factory=dict)
    """Of each baseline the values that were tried."""
    chosen: Mapping[str, str] = field(default_factory=dict)
    """Of each baseline the value with the largest sum of both primary figures."""
    others: tuple[tuple[str, ...], ...] = ()
    """Methods that take more than one word."""
    tuned_on: tuple[int, ...] = TUNED_ON
    fewest: int = 20
    """Rounds at least."""
    of_clients: bool = False
    """Whether the primary figures are over clients, and not over domains."""

    @property
    def primary(self) -> tuple[str, str]:
        """The two figures that methods are judged by."""
        if self.of_clients:
            return "clients.mean", "clients.worst_10"
        return "domains.mean", "domains.worst"

    @property
    def shown(self) -> list[str]:
        """The figures in its table."""
        of_clients = [key for key in LABELS if key.startswith("clients")]
        return of_clients if self.of_clients else [key for key in LABELS if key not in of_clients]

    def sweeps(self, stage: str) -> Iterator[tuple[str, ...]]:
        """Yield what `fedpw -m` is called with, call by call."""
        fixed = (*self.setting, f"client.learning_rate={self.learning_rate}")
        fixed = (*fixed, f"rounds={self.rounds}")
        tuning = (*fixed, f"seed={','.join(map(str, self.tuned_on))}")
        table = (*fixed, f"seed={self.seeds}")
        if stage == "rates":
            seeds = f"seed={','.join(map(str, TUNED_ON))}"
            rates = f"client.learning_rate={self.rates}"
            yield (*self.setting, seeds, f"rounds={self.longest}", "strategy=fedavg", rates)
        elif stage == "tuning":
            for method, grid in self.grids.items():
                yield (*tuning, f"strategy={method}", f"strategy.{grid}")
        else:
            yield (*table, f"strategy={self.methods}")
            for method, value in self.chosen.items():
                yield (*table, f"strategy={method}", f"strategy.{value}")
            for words in self.others:
                yield (*table, *words)


DIGITS = ("experiment=four_domains", "dataset.folder=DATA", "model.width=16")
GRIDS = {
    "afl": "lambda_step=0.001,0.003,0.01,0.03,0.1,0.3",
    "term": "t=0.1,0.3,1,3,10",
    "qfedavg": "q=0.1,0.3,1,3,10",
    "fedheal": "tau=0.1,0.3,0.5,0.7",
    "fedavgm": "server_momentum=0.3,0.5,0.7,0.9",
}
METHODS = "fedavg,fedavg_equal,fedpw,fedpw_server,fedpw_pa,fedpw_awa"

PUBLISHED = (
    Experiment(
        "hospitals",
        "Four hospitals: UCI Heart Disease",
        ("experiment=heart_disease", "dataset.folder=DATA/heart"),
        seeds=",".join(map(str, range(100, 130))),
        rates="0.001,0.003,0.01,0.03",
        longest=100,
        learning_rate=0.003,
        rounds=50,
        methods=METHODS,
        grids=GRIDS,
        chosen={},
    ),
)


def main() -> None:
    names = [one.name for one in PUBLISHED]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--data", type=Path, help="folder of the archives")
    parser.add_argument("--runs", type=Path, default=RUNS, help="of all runs, and of nothing else")
    parser.add_argument("--only", choices=STAGES, help="of the stages; default: one after another")
    parser.add_argument("--write", action="store_true", help="run nothing, only write the pages")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(names))
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; choose among {', '.join(names)}")
    if arguments.data is None and not arguments.write:
        parser.error("say with --data where the archives are")
    asked = [one for one in PUBLISHED if one.name in (arguments.names or names)]
    stages = (arguments.only,) if arguments.only else STAGES
    for one in () if arguments.write else asked:
        for stage in stages:
            run(one, stage, arguments.data.resolve(), arguments.runs.resolve() / one.name)
    for one in asked:
        if kept(one):
            write(one)
    PAGE.write_text(page(), encoding="utf-8")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder: what another call makes there would be taken for ours, or lost."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another call works in {folder}: wait for it, or give --runs another folder")
        yield
    finally:
        os.close(descriptor)


def run(one: Experiment, stage: str, data: Path, runs: Path) -> None:
    """Run what is missing of a stage of an experiment, and keep the figures of what finished."""
    with alone_in(runs):
        take_up(one, runs)
        for overrides in one.sweeps(stage):
            words = [word.replace("DATA", str(data)) for word in overrides]
            sweep = ["fedpw", "-m", *words, f"hydra.sweep.dir={runs}"]
            print(f"{one.name}: {' '.join(sweep)}", flush=True)
            # Strategies that only a comparison needs lie beside this file.
            path = f"{BENCHMARKS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
            ended = subprocess.run(sweep, check=False, env={**os.environ, "PYTHONPATH": path})
            keep(one, runs, data)
            if ended.returncode != 0:
                sys.exit(f"{one.name}: not all runs finished; begin again to go on")


def take_up(one: Experiment, runs: Path) -> None:
    """Put the finished runs that are kept where a sweep finds them."""
    for run in kept(one):
        place = runs / run.path.name
        if not place.exists():
            # Named only when it is whole: half a run would be run again.
            partial = place.with_name(f".{place.name}")
            partial.mkdir(exist_ok=True)
            for name, content in run.files.items():
                (partial / name).write_bytes(content)
            partial.rename(place)


def keep(one: Experiment, runs: Path, data: Path) -> None:
    """Keep the figures of every finished run, with DATA for the folder of the archives."""
    there = kept(one)
    names = {run.path.name for run in there}
    new = [
        _packed(RunFolder(summary.parent), data)
        for summary in sorted(runs.glob(f"*/{SUMMARY_FILE}"))
        if summary.parent.name not in names
    ]
    if new:
        (RESULTS / one.name).mkdir(exist_ok=True)
        pack_runs(RESULTS / one.name / KEPT, [*there, *new])


def _packed(run: RunFolder, data: Path) -> PackedRun:
    files = {}
    for name in filter(run.has, PACKED_FILES):
        text = run.content(name).decode().replace(str(data), "DATA").replace(f"{Path.cwd()}/", "")
        if name == METRICS_FILE:
            rounds = [_rounded(json.loads(line)) for line in text.splitlines()]
            text = "".join(f"{json.dumps(each)}\n" for each in rounds)
        files[name] = text.encode()
    return PackedRun(run.path, files)


def _rounded(value: Any) -> Any:
    """Round to five digits: the others are half of a file, and in no table."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def kept(one: Experiment) -> list[PackedRun]:
    """Return the finished runs of an experiment that are kept."""
    file = RESULTS / one.name / KEPT
    return packed_runs(file) if file.exists() else []


# --- Which values are chosen ----------------------------------------------------------------------


@cache
def finished(one: Experiment) -> list[FinishedRun]:
    """Return an experiment's runs with their histories."""
    runs, left_out = find_runs([RESULTS / one.name / KEPT])
    assert not left_out, left_out
    return runs


def of_stage(one: Experiment, stage: str) -> list[FinishedRun]:
    """Return the runs of a stage."""
    return [run for run in finished(one) if stage_of(run) == stage]


def stage_of(run: FinishedRun) -> str:
    """Tell for which stage a run was made."""
    if run.summary.seed not in TUNED_ON:
        return "table"
    return "rates" if run.summary.strategy == "fedavg" else "tuning"


def at(run: FinishedRun, key: str, end: int) -> float:
    """Return a figure's mean over the last rounds up to one."""
    return float(run.history.loc[end - LAST + 1 : end, key].mean())


def over(runs: Iterable[FinishedRun], key: str, end: int) -> float:
    """Return the mean over seeds of what `at` returns."""
    return float(pd.Series([at(run, key, end) for run in runs]).mean())


def rates_of(one: Experiment) -> pd.DataFrame:
    """Return FedAvg's primary figures by learning rate and number of rounds, with the last gain.

    `gain` is by how much the mean rose in the last fifth of the rounds.
    """
    mean, worst = one.primary
    rows = []
    for rate in map(float, one.rates.split(",")):
        runs = [
            run for run in of_stage(one, "rates") if run.group("client")["learning_rate"] == rate
        ]
        for rounds in (each for each in LADDER if runs and one.fewest <= each <= one.longest):
            then, now = over(runs, mean, round(0.8 * rounds)), over(runs, mean, rounds)
            rows.append((rate, rounds, now, over(runs, worst, rounds), now - then))
    return pd.DataFrame(rows, columns=["rate", "rounds", "mean", "worst", "gain"])


def chosen_rate(rates: pd.DataFrame) -> tuple[float, int]:
    """Return learning rate and rounds: each rate's first converged ones, of these the best mean."""
    converged = rates[rates["gain"] < CONVERGED].groupby("rate").first()
    best = converged["mean"].idxmax()
    return float(best), int(converged.loc[best, "rounds"])


def tuning_of(one: Experiment) -> pd.DataFrame:
    """Return both primary figures, and their sum, of each value of each baseline's grid."""
    mean, worst = one.primary
    rows = []
    for method, grid in one.grids.items():
        key, _, values = grid.partition("=")
        for value in values.split(","):
            runs = [
                run
                for run in of_stage(one, "tuning")
                if run.summary.strategy == method and run.group("strategy")[key] == float(value)
            ]
            if runs:
                figures = over(runs, mean, one.rounds), over(runs, worst, one.rounds)
                rows.append((method, f"{key}={value}", *figures, sum(figures)))
    return pd.DataFrame(rows, columns=["method", "value", "mean", "worst", "sum"])


def chosen_values(tuning: pd.DataFrame) -> dict[str, str]:
    """Return of each baseline the value with the largest sum."""
    best = tuning.loc[tuning.groupby("method", sort=False)["sum"].idxmax()]
    return dict(zip(best["method"], best["value"], strict=True))


# --- The pages ------------------------------------------------------------------------------------


def write(one: Experiment) -> None:
    """Write results/NAME: how settings were chosen, and the comparison where there is a table."""
    folder = RESULTS / one.name
    (folder / "tuning.md").write_text(tuning_page(one), encoding="utf-8")
    names = [run.path.name for run in of_stage(one, "table")]
    if names:
        made = compare([folder / KEPT], only=names, output=folder, against="fedavg")
        text = made.read_text(encoding="utf-8")
        made.write_text(re.sub(r"!\[.*\n\n\*.*\*\n\n?", "", text), encoding="utf-8")
        remove_plots(set(folder.glob("*.png")), folder)


def tuning_page(one: Experiment) -> str:
    """Return the page on how learning rate, rounds and the baselines' values were chosen."""
    labels = [LABELS[key] for key in one.primary]
    rates = Table(
        "FedAvg by learning rate and rounds",
        ("learning rate", "rounds", *labels, "gain in the last fifth, points"),
        tuple(
            (f"{row.rate:g}", str(row.rounds), *map(number, (row.mean, row.worst, row.gain)))
            for row in rates_of(one).itertuples()
        ),
        f"Seeds {', '.join(map(str, TUNED_ON))}. Chosen: learning rate {one.learning_rate:g}, "
        f"{one.rounds} rounds.",
    )
    tuning = Table(
        "Baselines",
        ("method", "value", *labels, "sum"),
        tuple(
            (row.method, row.value, *map(number, (row.mean, row.worst, row.sum)))
            for row in tuning_of(one).itertuples()
        ),
        f"Seeds {', '.join(map(str, one.tuned_on))}, {one.rounds} rounds. Chosen: "
        f"{'; '.join(f'{method} {value}' for method, value in one.chosen.items())}.",
    )
    parts = (f"# {one.title}: how settings were chosen", rates.markdown(), tuning.markdown())
    return "\n\n".join(parts[: 3 if tuning.rows else 2]) + "\n"


def page() -> str:
    """Put RESULTS.md together."""
    parts = ["# Results", _text(RESULTS / "answer.md"), _text(RESULTS / "preface.md")]
    for one in PUBLISHED:
        folder = RESULTS / one.name
        parts.append(f"## {one.title}")
        if not (folder / "differences.csv").is_file():
            parts.append("Not run yet.")
            continue
        commands = "\n".join(" ".join(("fedpw -m", *words)) for words in one.sweeps("table"))
        parts += [_text(folder / REMARKS), results_table(one), f"```\n{commands}\n```"]
        parts.append(
            f"All figures: [comparison](results/{one.name}/comparison.md), "
            f"[by run](results/{one.name}/comparison.csv), "
            f"[differences](results/{one.name}/differences.csv), "
            f"[tuning](results/{one.name}/tuning.md)."
        )
    return "\n\n".join(part for part in parts if part) + "\n"


def differences(one: Experiment) -> pd.DataFrame:
    """Return the differences to FedAvg in the primary figures, with Holm's p in `p_holm`."""
    found = pd.read_csv(RESULTS / one.name / "differences.csv")
    found = found[found["figure"].isin(one.primary) & (found["window"] == WINDOW)].copy()
    found["p_holm"] = holm_corrected(found["p_t"])
    return found


def results_table(one: Experiment) -> str:
    """Return methods, their figures, and their differences to FedAvg."""
    made = pd.read_csv(RESULTS / one.name / "comparison.csv")
    methods = made[made["kind"] == "method"].set_index("method")
    found = differences(one).set_index(["method", "figure"])
    shown = [key for key in LABELS if f"{WINDOW}.{key}" in methods and key in one.shown]
    rows = []
    for method, figures in methods.iterrows():
        cells = [
            number(figures[f"{WINDOW}.{key}"], std=figures[f"{WINDOW}.{key}.sd"]) for key in shown
        ]
        if (method, one.primary[0]) in found.index:
            cells += [_difference(found.loc[(method, key)]) for key in one.primary]
        else:
            cells += ["", ""]
        rows.append((str(method), *cells))
    tested = found.reset_index().groupby("figure")["detectable"].median()
    note = (
        f"{methods['seeds'].max()} seeds. In brackets 95 % confidence intervals; **bold**: p < "
        f"{LEVEL} after Holm's correction over this table. In the median over the methods, "
        f"a true difference of {number(tested[one.primary[0]], 1)} points in "
        f"{LABELS[one.primary[0]]} and of {number(tested[one.primary[1]], 1)} in "
        f"{LABELS[one.primary[1]]} would have been found four times in five, before correction."
    )
    header = (
        "method",
        *(LABELS[key] for key in shown),
        *(f"Δ {LABELS[key]}" for key in one.primary),
    )
    table = Table("", header, tuple(rows)).markdown()
    return f"{table.removeprefix('### ').strip()}\n\n{note}"


def _difference(found: pd.Series) -> str:
    middle, margin = found["difference"], found["margin"]
    text = f"{number(middle, sign=True)} [{number(middle - margin)}, {number(middle + margin)}]"
    return f"**{text}**" if found["p_holm"] < LEVEL else text


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


if __name__ == "__main__":
    main()
