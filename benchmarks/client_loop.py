"""Rounds an hour of a simulation: a plain loop in one process, and `fedpw` in float32 and bfloat16.

    python benchmarks/client_loop.py --data DATA

The three do the same work in the same run, in turns: plain_loop.py says what the plain loop does,
the others are the real command, a Ray simulation on all cores. A round lasts from one recorded
global model to the next: training, adjustment, messages, aggregation, evaluation on every domain,
and for `fedpw` also saving. What belongs to no later round is called start and end, for all three:
imports, images, Ray, workers, the first round, in which the workers get ready, and for `fedpw`
also plots and Ray's shutdown. DATA holds mnist.npz, usps.npz, svhn.npz and mnistm.npz; where it is
not given, the digits that come with the package are trained on, and the table says so.

client_accuracy.py runs the three to the end and compares their accuracies.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from report import Table

FOLDER = Path(__file__).resolve().parent

PLAIN = "plain loop"
KINDS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "fedpw, float32": ("client.precision=float32",),
    "fedpw, bfloat16": ("client.precision=bfloat16",),
}
"""What is compared, with the words of the command that make it so."""

SKIPPED_WHEN_TINY = ("fedpw, float32",)
"""One simulation shows that they run; each takes half a minute to start."""

WHOLE_RUN = 40
"""Rounds over which the start-up is spread: the experiment's own number."""

LAST_ROUNDS = 3
GPU_WORKERS = (1, 2, 4, 8)
NO_GPU = "not measured (no GPU)"

TINY = (
    "model.width=2",
    "dataset.domains=[scans,blurred]",
    "partition=by_domain",
    "partition.clients_per_domain=1",
    "partition.train_per_client=32",
    "client.epochs=1",
)


@dataclass(frozen=True)
class Run:
    """What a run took and reached."""

    seconds: tuple[float, ...]
    """Of each round, the first included."""
    start_up: float
    """Seconds from the start of the command that belong to no round but the first."""
    accuracy: tuple[Mapping[str, float], ...]
    """On each domain, after each round; 0 to 1."""

    @property
    def seconds_a_round(self) -> float:
        return statistics.median(self.seconds[1:] or self.seconds)

    def hours(self, rounds: int) -> float:
        """Return the hours of a run of so many rounds, start-up included."""
        return (self.start_up + (rounds - 1) * self.seconds_a_round) / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--data", type=Path, help="folder with the archives of the four domains")
    parser.add_argument("--repeats", type=int, default=3, help="of every kind, in turns")
    parser.add_argument("--rounds", type=int, default=5, help="of each run")
    arguments = parser.parse_args()
    found = tables(arguments.tiny, arguments.data, arguments.repeats, arguments.rounds)
    print("\n\n".join(table.markdown() for table in found))


def tables(
    tiny: bool = False, data: Path | None = None, repeats: int = 3, rounds: int = 5
) -> list[Table]:
    # Its compiler and vmap are slow to import, and client_accuracy.py needs neither.
    import training_steps

    if tiny:
        repeats, rounds = 1, 2
    return [
        rounds_table(data, repeats, rounds, tiny=tiny),
        *training_steps.step_tables(tiny),
        gpu_table(data, rounds, "cuda" if torch.cuda.is_available() else None, tiny=tiny),
    ]


def rounds_table(data: Path | None, repeats: int, rounds: int, *, tiny: bool = False) -> Table:
    """Rounds an hour of the three, in turns."""
    words, described = (
        ((*TINY, "runtime.device=cpu"), "a handful of digits") if tiny else experiment_words(data)
    )
    kinds = [kind for kind in KINDS if not (tiny and kind in SKIPPED_WHEN_TINY)]
    runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind in kinds:
            runs[kind].append(run(kind, (*words, *KINDS[kind]), rounds))
    rows = []
    for kind, done in runs.items():
        excluded = [
            plain.seconds_a_round / ours.seconds_a_round
            for plain, ours in zip(runs[PLAIN], done, strict=True)
        ]
        included = [
            plain.hours(WHOLE_RUN) / ours.hours(WHOLE_RUN)
            for plain, ours in zip(runs[PLAIN], done, strict=True)
        ]
        seconds = statistics.median(ours.seconds_a_round for ours in done)
        rows.append(
            (
                kind,
                f"{seconds:.2f}",
                f"{3600 / seconds:.0f}",
                f"{statistics.median(excluded):.2f} ×",
                f"{min(excluded):.2f} to {max(excluded):.2f}",
                f"{statistics.median(ours.start_up for ours in done):.0f}",
                f"{statistics.median(WHOLE_RUN / ours.hours(WHOLE_RUN) for ours in done):.0f}",
                f"{statistics.median(included):.2f} ×",
            )
        )
    return Table(
        "Rounds an hour",
        (
            "who",
            "s a round",
            "rounds an hour",
            "/ plain",
            "lowest to highest",
            "start and end, s",
            f"rounds an hour of a run of {WHOLE_RUN}, start and end included",
            "/ plain",
        ),
        tuple(rows),
        f"{described}; `{_shown(words)}`. {repeats} runs of {rounds} rounds each, in turns; "
        "medians of the rounds after the first, ratios within a turn. The plain loop uses "
        f"{torch.get_num_threads()} threads in one process, fedpw one worker a core.",
    )


def gpu_table(data: Path | None, rounds: int, device: str | None, *, tiny: bool = False) -> Table:
    """The paper's Digits setting on one GPU, with 1 to 8 workers that share it.

    A device "cpu" only shows that it runs; None says in each row that nothing was measured.
    """
    words, described = (TINY, "a handful of digits") if tiny else paper_words(data)
    rows: list[tuple[str, ...]] = []
    plain: Run | None = None
    for kind, extra in KINDS.items():
        for workers in (1,) if tiny or kind == PLAIN else GPU_WORKERS:
            if device is None:
                rows.append((kind, f"{workers}", NO_GPU, "", ""))
                continue
            places = (f"runtime.device={device}", f"runtime.total_cpus={workers}")
            # A plain loop has the GPU for itself, and asks nobody for it.
            share = 1 / workers if device.startswith("cuda") else 0.0
            done = run(
                kind, (*words, *extra, *places, f"runtime.gpus_per_client={share:g}"), rounds
            )
            plain = plain or done
            ratio = f"{plain.seconds_a_round / done.seconds_a_round:.2f} ×"
            seconds = done.seconds_a_round
            rows.append((kind, f"{workers}", f"{seconds:.2f}", f"{3600 / seconds:.0f}", ratio))
    return Table(
        "Rounds an hour on one GPU",
        ("who", "workers", "s a round", "rounds an hour", "/ plain"),
        tuple(rows),
        f"The paper's Digits setting: {described}; `{_shown(words)}`. Medians of the rounds "
        f"after the first of {rounds}.",
    )


def accuracy_table(
    data: Path | None, seeds: Sequence[int], rounds: int, *, tiny: bool = False
) -> Table:
    """AVG, STD and worst accuracy of whole runs, seed by seed, with the spread over seeds."""
    words, described = (TINY, "a handful of digits") if tiny else experiment_words(data)
    figures: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    rows: list[tuple[str, ...]] = []
    for seed in seeds:
        for kind, extra in KINDS.items():
            done = run(kind, (*words, f"seed={seed}", *extra), rounds)
            figures[kind].append(figures_of(done))
            rows.append((kind, f"{seed}", *(f"{value:.2f}" for value in figures[kind][-1])))
    for kind, found in figures.items():
        columns = list(zip(*found, strict=True))
        means = [f"{statistics.mean(column):.2f}" for column in columns]
        rows.append((kind, "mean", *means))
        if len(seeds) > 1:
            spreads = [f"{statistics.stdev(column):.2f}" for column in columns]
            rows.append((kind, "spread over seeds", *spreads))
    return Table(
        "Accuracy of whole runs",
        ("who", "seed", "AVG, %", "STD, points", "worst, %"),
        tuple(rows),
        f"{described}; `{_shown(words)}`, {rounds} rounds, means of the last {LAST_ROUNDS}. "
        "AVG, STD (ddof=1) and worst are over the domains; the spread is the standard deviation "
        "(ddof=1) over seeds. The plain loop draws its crops and orders from another source, so it "
        "differs from the others as one seed from another.",
    )


def figures_of(done: Run) -> tuple[float, float, float]:
    """Return AVG, STD and worst accuracy over the domains in percent, means of the last rounds."""
    last = [
        [100 * value for value in accuracy.values()] for accuracy in done.accuracy[-LAST_ROUNDS:]
    ]
    return (
        statistics.mean(statistics.mean(values) for values in last),
        statistics.mean(statistics.stdev(values) for values in last),
        statistics.mean(min(values) for values in last),
    )


def _shown(words: Sequence[str]) -> str:
    """Join the words of a command, with DATA for a folder of this machine."""
    folder = "dataset.folder="
    return shlex.join(f"{folder}DATA" if word.startswith(folder) else word for word in words)


def experiment_words(data: Path | None) -> tuple[tuple[str, ...], str]:
    """Return the words of the four-domain experiment, and what they train on."""
    if data is None:
        return (), "the digits that come with the package (no --data with the four domains)"
    words = ("experiment=four_domains", f"dataset.folder={os.path.relpath(data)}")
    return words, "MNIST, USPS, SVHN and MNIST-M, two clients each, ResNet-10 of width 16"


def paper_words(data: Path | None) -> tuple[tuple[str, ...], str]:
    """Return the words of the paper's Digits setting: 20 clients, width 64, 10 local epochs."""
    words, _ = experiment_words(data)
    described = "20 clients, five a domain, ResNet-10 of width 64, 10 epochs of batches of 64"
    settings = ("model.width=64", "client.epochs=10", "client.batch_size=64")
    if not words:
        division = ("partition=by_domain", "partition.clients_per_domain=5")
        return (*division, *settings), f"{described}, embedded digits"
    # 1 % of MNIST, USPS and MNIST-M, and what the archive of SVHN has.
    division = (
        "partition.clients_per_domain=5",
        "partition.train_per_client={mnist:600,usps:73,svhn:147,mnistm:600}",
    )
    return (*words, *division, *settings, "client.learning_rate=0.001"), described


def run(kind: str, words: Sequence[str], rounds: int) -> Run:
    """Run the plain loop or the command in a process of its own."""
    return run_plain(words, rounds) if kind == PLAIN else run_fedpw(words, rounds)


def run_plain(words: Sequence[str], rounds: int) -> Run:
    started = time.monotonic()
    command = [sys.executable, str(FOLDER / "plain_loop.py"), "--rounds", str(rounds), "--"]
    done = subprocess.run([*command, *words], stdout=subprocess.PIPE, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return _as_run(lines, time.monotonic() - started)


def run_fedpw(words: Sequence[str], rounds: int) -> Run:
    binaries = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        started = time.monotonic()
        done = subprocess.run(
            [str(binaries / "fedpw"), *words, f"rounds={rounds}", f"hydra.run.dir={output}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        wall = time.monotonic() - started
        if done.returncode != 0:
            raise RuntimeError(f"fedpw {shlex.join(words)} failed:\n{done.stdout[-4000:]}")
        written = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    # Round 0 is the evaluation of the initial model.
    return _as_run([json.loads(line) for line in written][1:], wall)


def _as_run(lines: Sequence[Mapping[str, object]], wall: float) -> Run:
    seconds = tuple(float(line["seconds"]) for line in lines)  # type: ignore[arg-type]
    accuracy = tuple(line["accuracy"] for line in lines)
    return Run(seconds, wall - sum(seconds[1:]), accuracy)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
