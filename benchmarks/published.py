"""Run the experiments of RESULTS.md, compare them, and write it.

    python benchmarks/published.py --data DATA               # all: hours
    python benchmarks/published.py --data DATA digits beta   # some of them
    python benchmarks/published.py --write                   # only RESULTS.md, of what there is

DATA is a folder of archives (mnist.npz, usps.npz, svhn.npz, mnistm.npz, fashion_mnist.npz,
cifar10.npz). Begun again it runs only what is missing, so it may be stopped at any time, and go on
in another clone: the figures of every finished run are kept in results/runs.tar.xz, without its
models. What `fedpw-compare` makes of each experiment goes to results/NAME, of its plots the one
that RESULTS.md shows; RESULTS.md is made of these pages and of the remarks in
results/NAME/remarks.md, which are written by hand.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fedpw_flwr.files import atomic_file
from fedpw_flwr.lab.compare.command import compare
from fedpw_flwr.lab.compare.markdown import plots_of_page, remove_plots
from fedpw_flwr.lab.runs.packed_runs import PACKED_FILES, PackedRun, pack_runs, packed_runs
from fedpw_flwr.lab.runs.run_folder import FAILURE_FILE, SUMMARY_FILE, RunFolder

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "RESULTS.md"
COMPARISONS = REPOSITORY / "results"
RUNS = REPOSITORY / "multirun" / "published"
PREFACE, REMARKS = "preface.md", "remarks.md"
KEPT = COMPARISONS / "runs.tar.xz"
SHOWN = "fairness.png"
"""Of a comparison's plots, the one that the page has room for."""

SEEDS = "seed=0,1,2"
HELD_OUT = "seed=100"
FOUR_DOMAINS = ("experiment=four_domains", "dataset.folder=DATA", "model.width=8")
SMALL = ("model=cnn", "client.epochs=1", "client.learning_rate=0.02")
ARCHIVES = "dataset.archives_folder=DATA"

CHOSEN_ON_FOUR_SOURCES = {
    "fedprox": "proximal_mu=0.01",
    "fedavgm": "server_momentum=0.5",
    "fedadam": "eta=0.1",
    "qfedavg": "q=5",
    "afl": "lambda_step=0.1",
    "term": "t=1",
    "fedmgda_plus": "epsilon=0.1",
    "fedheal": "tau=0.5",
}
"""Of the grid in the section "tuning": the largest AVG - STD."""

CHOSEN_ON_FASHION_MNIST = {"qfedavg": "q=0.1", "term": "t=0.1", "fedheal": "tau=0.1"}
"""Of the grid in the section "tuning-label-skew": the largest mean - STD over clients."""

LONGER_STEP = (
    "strategy=fedavgm",
    *("strategy.server_momentum=0", "strategy.server_learning_rate=1.25"),
)
"""FedAvg with a step as much longer as FedPW's amplification makes it: what that alone does."""


@dataclass(frozen=True)
class Published:
    """One experiment of RESULTS.md."""

    name: str
    """Of its folder, and on the command line."""
    title: str
    sweeps: tuple[tuple[str, ...], ...]
    """What `fedpw -m` is called with, call by call; DATA stands for the folder of the archives."""
    against: str = "fedavg"
    """The method that the others are compared with."""


def _grid(name: str, title: str, fixed: tuple[str, ...], grid: dict[str, str]) -> Published:
    return Published(
        name,
        title,
        (
            (*fixed, HELD_OUT, "strategy=fedavg"),
            *(
                (
                    *(*fixed, HELD_OUT, f"strategy={method}"),
                    *(f"strategy.{values}" for values in settings.split()),
                )
                for method, settings in grid.items()
            ),
        ),
    )


def _methods(
    fixed: tuple[str, ...], methods: str, chosen: dict[str, str]
) -> tuple[tuple[str, ...], ...]:
    """Return the sweeps of methods with their own settings, and of baselines with those chosen."""
    baselines = (
        (*fixed, SEEDS, f"strategy={method}", f"strategy.{value}")
        for method, value in chosen.items()
    )
    return (*fixed, SEEDS, f"strategy={methods}"), *baselines


def _label_skew(dataset: str, title: str, rounds: int) -> list[Published]:
    return [
        Published(
            f"{dataset}-{partition}",
            f"{title}, {divided}",
            _methods(
                (
                    *(f"experiment={dataset}", f"partition={partition}"),
                    *(ARCHIVES, *SMALL, f"rounds={rounds}"),
                ),
                "fedavg,fedavg_equal,fedpw",
                CHOSEN_ON_FASHION_MNIST,
            ),
        )
        for partition, divided in (
            ("dirichlet", "Dir(0.1)"),
            ("pat1", "Pat-1 (one class a client)"),
            ("pat2", "Pat-2 (two classes a client)"),
        )
    ]


def _sensitivity(name: str, title: str, key: str, values: str) -> Published:
    command = (*FOUR_DOMAINS, "rounds=25", SEEDS, "strategy=fedpw", f"strategy.{key}={values}")
    return Published(name, title, (command,), against=f"fedpw, {key}=0.3")


PUBLISHED = (
    Published(
        "embedded",
        "The default experiment, on images that come with the package",
        (("strategy=fedavg,fedpw_server,fedpw", SEEDS),),
    ),
    Published(
        "digits",
        "Four real sources of digits",
        (
            *_methods(
                (*FOUR_DOMAINS, "rounds=25"),
                "fedavg,fedavg_equal,fedpw_paper,fedpw_server,fedpw,fedpw_pa,fedpw_awa",
                CHOSEN_ON_FOUR_SOURCES,
            ),
            (*FOUR_DOMAINS, "rounds=25", SEEDS, *LONGER_STEP),
        ),
    ),
    *_label_skew("fashion_mnist", "Fashion-MNIST", 20),
    *_label_skew("cifar10", "CIFAR-10", 40),
    _sensitivity("beta", "Sensitivity to β, on the four sources", "beta", "0.1,0.3,0.5,0.7"),
    _sensitivity(
        "drop-rate",
        "Sensitivity to the mean drop rate, on the four sources",
        *("avg_drop_rate", "0.1,0.3,0.5,0.7"),
    ),
    _grid(
        "tuning",
        "The baselines' settings on the four sources, chosen with a seed of its own",
        (*FOUR_DOMAINS, "rounds=12"),
        {
            "fedprox": "proximal_mu=0.01,0.1,1",
            "fedavgm": "server_momentum=0.5,0.9",
            "fedadam": "eta=0.01,0.1",
            "qfedavg": "q=0.1,1,5",
            "afl": "lambda_step=0.01,0.1,1",
            "term": "t=0.1,1,5",
            "fedmgda_plus": "epsilon=0.1,1 server_learning_rate=0.5,1,1.5 decay=0.95,1",
            "fedheal": "tau=0.1,0.3,0.5",
        },
    ),
    _grid(
        "tuning-label-skew",
        "The baselines' settings under label skew, chosen on Fashion-MNIST with a seed of its own",
        ("experiment=fashion_mnist", "partition=dirichlet", ARCHIVES, *SMALL, "rounds=20"),
        {"qfedavg": "q=0.1,1,5", "term": "t=0.1,1,5", "fedheal": "tau=0.1,0.3,0.5"},
    ),
)


def main() -> None:
    names = [one.name for one in PUBLISHED]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--data", type=Path, help="folder of the archives")
    parser.add_argument("--runs", type=Path, default=RUNS, help="of all runs, and of nothing else")
    parser.add_argument("--write", action="store_true", help="run nothing, only write RESULTS.md")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(names))
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; choose among {', '.join(names)}")
    if arguments.data is None and not arguments.write:
        parser.error("say with --data where the archives are")
    failed = False
    for one in PUBLISHED:
        if not arguments.write and (not arguments.names or one.name in arguments.names):
            data, runs = arguments.data.resolve(), arguments.runs.resolve()
            with alone_in(runs):
                take_up(runs)
                failed |= not run(one, data, runs)
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit(1 if failed else 0)


@contextmanager
def alone_in(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder: what another call makes there would be taken for ours, or lost."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            sys.exit(f"another call works in {folder}: wait for it, or give --runs another folder")
        yield
    finally:
        os.close(descriptor)


def run(one: Published, data: Path, runs: Path) -> bool:
    """Run what is missing of an experiment and keep its comparison; return whether all is done.

    Runs that failed are among those compared, so that the page names them.
    """
    done, began = True, time.time()
    names: list[str] = []
    for overrides in one.sweeps:
        # One folder for all: a run that two experiments share is run once.
        words = [word.replace("DATA", str(data)) for word in overrides]
        sweep = ["fedpw", "-m", *words, f"hydra.sweep.dir={runs}"]
        print(f"{one.name}: {' '.join(sweep)}", flush=True)
        sweep_began = time.time()
        done &= subprocess.run(sweep, check=False).returncode == 0
        made = [
            file
            for file in runs.glob("comparison-*/comparison.csv")
            if _modified(file) >= sweep_began
        ]
        if len(made) == 1:
            with made[0].open(encoding="utf-8", newline="") as rows:
                named = [row["folder"] for row in csv.DictReader(rows)]
            names += [Path(folder).name for folder in named if folder]
        elif made:
            sys.exit(
                f"{one.name}: another sweep ended in {runs}; give this one a folder of its own"
            )
        keep(runs, data)
    failures = [file for file in runs.glob(f"*/{FAILURE_FILE}") if _modified(file) >= began]
    failed = [file.parent for file in failures]
    names += [folder.name for folder in failed]
    if not names:
        return False
    page = compare([KEPT, *failed], only=names, output=COMPARISONS / one.name, against=one.against)
    leave_shown(page)
    return done


def take_up(runs: Path) -> None:
    """Put the finished runs that are kept where a sweep finds them."""
    for run in kept():
        place = runs / run.path.name
        if not place.exists():
            # Named only when it is whole: half a run would be run again.
            partial = place.with_name(f".{place.name}")
            partial.mkdir(exist_ok=True)
            for name, content in run.files.items():
                (partial / name).write_bytes(content)
            partial.rename(place)


def keep(runs: Path, data: Path) -> None:
    """Keep the figures of every finished run, with DATA for the folder of the archives.

    Other folders begin where this was called.
    """
    # Two calls may work in folders of their own, and there is one file for both.
    with alone_in(COMPARISONS, wait=True):
        there = kept()
        names = {run.path.name for run in there}
        new = [
            _packed(RunFolder(summary.parent), data)
            for summary in runs.glob(f"*/{SUMMARY_FILE}")
            if summary.parent.name not in names
        ]
        if new:
            pack_runs(KEPT, [*there, *new])


def _packed(run: RunFolder, data: Path) -> PackedRun:
    files = {}
    for name in filter(run.has, PACKED_FILES):
        text = run.content(name).decode().replace(str(data), "DATA")
        files[name] = text.replace(f"{Path.cwd()}/", "").encode()
    return PackedRun(run.path, files)


def kept() -> list[PackedRun]:
    """Return the finished runs that are kept."""
    return packed_runs(KEPT) if KEPT.exists() else []


def leave_shown(comparison: Path) -> None:
    """Leave of a comparison's plots the one that RESULTS.md shows, in 256 colours.

    The others are ten times as large, and `fedpw-compare` draws them again.
    """
    drawn = plots_of_page(comparison)
    text = comparison.read_text(encoding="utf-8")
    text = re.sub(rf"!\[.*\]\((?!.*{SHOWN}\)).*\)\n\n\*.*\*\n\n", "", text)
    comparison.write_text(text, encoding="utf-8")
    shown = plots_of_page(comparison)
    remove_plots(drawn - shown, comparison.parent)
    for plot in shown:
        with atomic_file(plot) as partial, Image.open(plot) as image:
            small = image.convert("RGB").quantize(dither=Image.Dither.NONE)
            small.save(partial, format="png", optimize=True, dpi=image.info["dpi"])


def _modified(file: Path) -> float:
    return file.stat().st_mtime


def page() -> str:
    """Put RESULTS.md together from the comparisons that there are."""
    parts = ["# Results", _text(COMPARISONS / PREFACE)]
    for one in PUBLISHED:
        made = COMPARISONS / one.name / "comparison.md"
        if not made.is_file():
            parts += [f"## {one.title}", "Not run yet."]
            continue
        commands = "\n".join(" ".join(("fedpw -m", *sweep)) for sweep in one.sweeps)
        parts += [f"## {one.title}", f"```\n{commands}\n```", _text(made.with_name(REMARKS))]
        parts.append(_section(made.read_text(encoding="utf-8"), f"results/{one.name}"))
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(text: str, folder: str) -> str:
    """Take of a comparison's page what stands for it: failed runs, last rounds' tables, a plot.

    Its own title goes, and its links point to its folder, where the rest is.
    """
    body = text.split("\n## Columns of comparison.csv")[0]
    tables, *plots = re.split(r"^(?=!\[)", body, flags=re.MULTILINE)
    above, *settings = tables.split("\n## ")
    left_out = above.find("**Left out")
    kept = [above[left_out:].strip()] if left_out >= 0 else []
    for setting in settings:
        heading, *sections = re.split(r"^(?=### )", setting, flags=re.MULTILINE)
        label, _, said = heading.partition("\n")
        kept += [f"**{label.strip()}**", said.strip()]
        for section in sections:
            title, _, content = section.partition("\n")
            if re.search(r"mean of the last \d+ rounds", title):
                kept += [f"**{title.removeprefix('### ')}**", content.strip()]
    kept += [plot.split("\n")[0] for plot in plots]
    kept.append(
        "The last round's tables: [comparison.md](comparison.md); every run: "
        "[comparison.csv](comparison.csv)."
    )
    joined = "\n\n".join(kept)
    return re.sub(r"\]\((?!https?:)([^)]+)\)", rf"]({folder}/\1)", joined).strip()


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


if __name__ == "__main__":
    main()
