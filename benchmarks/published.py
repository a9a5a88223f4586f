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
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import results_page
from experiments import PUBLISHED, STAGES, Experiment

from fedpw_flwr.lab.runs.packed_runs import PACKED_FILES, PackedRun, pack_runs, packed_runs
from fedpw_flwr.lab.runs.run_folder import METRICS_FILE, SUMMARY_FILE, RunFolder

BENCHMARKS = Path(__file__).resolve().parent
RUNS = BENCHMARKS.parent / "multirun" / "published"

DIGITS = {"loss": 3, "train_loss": 3, "seconds": 2, "weight": 4, "p": 4, "q": 4}
"""Of what no table has."""


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
            results_page.write(one)
    results_page.draw_gains(results_page.RESULTS / results_page.GAINS)
    page = results_page.REPOSITORY / "RESULTS.md"
    page.write_text(results_page.page(), encoding="utf-8")


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
        (results_page.RESULTS / one.name).mkdir(exist_ok=True)
        pack_runs(results_page.RESULTS / one.name / results_page.KEPT, [*there, *new])


def _packed(run: RunFolder, data: Path) -> PackedRun:
    files = {}
    for name in filter(run.has, PACKED_FILES):
        text = run.content(name).decode().replace(str(data), "DATA").replace(f"{Path.cwd()}/", "")
        if name == METRICS_FILE:
            rounds = [_rounded(json.loads(line)) for line in text.splitlines()]
            text = "".join(f"{json.dumps(each)}\n" for each in rounds)
        files[name] = text.encode()
    return PackedRun(run.path, files)


def _rounded(value: Any, digits: int = 5) -> Any:
    """Round to as many digits as a table may need: the others are half of a file."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: _rounded(each, DIGITS.get(key, digits)) for key, each in value.items()}
    return [_rounded(each, digits) for each in value] if isinstance(value, list) else value


def kept(one: Experiment) -> list[PackedRun]:
    """Return the finished runs of an experiment that are kept."""
    file = results_page.RESULTS / one.name / results_page.KEPT
    return packed_runs(file) if file.exists() else []


if __name__ == "__main__":
    main()
