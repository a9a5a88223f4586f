"""fedpw beside other frameworks on the same work, from the command to its exit.

    python benchmarks/peers.py --data DATA --python pfl_research=../pfl/bin/python --runs 3

Ten clients with 400 MNIST digits each train a small network, two epochs of SGD a round, ten rounds
of FedAvg; each process computes with one thread, and the global network is tested on 1000 digits
after each round. Each peer is a script in the folder peers/ whose docstring says how to install it,
run by the Python that --python names for it, else by this one. Runs of all peers alternate. DATA
holds mnist.npz, or MNIST as torchvision keeps it. Memory is what /proc tells, so this needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from peak_memory import peak_memory
from report import Table
from run import commit, cores, cpu_model

from fedpw_flwr.lab.data.examples import ImageSet
from fedpw_flwr.lab.data.named_sets import named_set

FOLDER = Path(__file__).resolve().parent

OURS = "fedpw"
PACKAGES = {
    OURS: "torch",
    "plain_loop": "torch",
    "two_processes": "torch",
    "flower_quickstart": "flwr",
    "pfl_research": "pfl",
    "fedlab_serial": "fedlab",
    "blazefl_threads": "blazefl",
}
"""What is measured, and the package whose version is told."""

SECONDS_AT_MOST = 1200

WORK = (
    *("dataset=four_domains", "dataset.domains=[mnist]", "model=cnn", "strategy=fedavg"),
    *("dataset.image_size=28", "dataset.channels=1"),
    *("partition=by_domain", "partition.clients_per_domain=10", "partition.train_per_client=400"),
    *("client.epochs=2", "client.batch_size=16", "client.learning_rate=0.1"),
    *("client.momentum=0", "client.weight_decay=0", "client.crop_padding=0"),
)
"""The work of peers/workload.py in fedpw's words."""


@dataclass(frozen=True)
class Run:
    """Seconds of one run's parts, what its network knew at the end, and its memory."""

    first: float
    """From the start of the command to the end of the first round."""
    each: float
    """Median of the rounds after it."""
    end: float
    """From the end of the last round to the exit of the command."""
    total: float
    accuracy: float
    """In percent."""
    memory: float
    """Largest sum of the processes' proportional set sizes, in MiB."""


FIGURES = {
    "first round, s": 1,
    "a round, s": 2,
    "after the last, s": 1,
    "all, s": 1,
    "accuracy, %": 1,
    "memory, MiB": 0,
}
"""What the table calls the figures of a run, and with how many decimals it prints them."""


class NotMeasured(RuntimeError):
    """A peer is not installed, or failed; says why in a line."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PACKAGES)}")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10, help="at least 2")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    arguments = parser.parse_args()
    named = dict(word.split("=", 1) for word in arguments.python)
    if unknown := {*arguments.names, *named} - set(PACKAGES):
        parser.error(f"there is no peer {', '.join(unknown)}; choose among {', '.join(PACKAGES)}")
    # Not resolved: the link in an environment's folder is how Python knows its environment.
    pythons = {
        name: str(Path(named.get(name, sys.executable)).absolute())
        for name in arguments.names or PACKAGES
    }
    load = os.getloadavg()[0]
    versions: dict[str, str] = {}
    runs: dict[str, list[Run]] = {name: [] for name in pythons}
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        archive = Path(folder) / "mnist.npz"
        cut(arguments.data, archive)
        for _ in range(arguments.runs):
            for name, python in pythons.items():
                if name not in versions or runs[name]:
                    try:
                        versions[name] = version(name, python)
                        runs[name].append(measure(name, python, archive, arguments.rounds))
                    except NotMeasured as why:
                        versions[name] = str(why)
                    print(f"{name}: {runs[name][-1:] or versions[name]}", file=sys.stderr)
    tables = (figures(runs, versions, load), goals(runs))
    print("\n\n".join(table.markdown() for table in tables if table.rows))


def cut(data: Path, archive: Path) -> None:
    """Write the images that all peers read: 4000 digits to train on and 1000 to test, shuffled."""
    own = data if (data / "mnist.npz").is_file() else None
    (digits,) = named_set(["mnist"], data, archives_folder=own, image_size=28, channels=1).domains
    arrays = {}
    for split, images, count in (("train", digits.train, 4000), ("test", digits.test, 1000)):
        assert isinstance(images, ImageSet)
        order = np.random.default_rng(0).permutation(len(images))[:count]
        arrays[f"x_{split}"] = images.images.numpy()[order, 0]
        arrays[f"y_{split}"] = images.labels.numpy()[order]
    np.savez(archive, **arrays)


def version(name: str, python: str) -> str:
    """Return the version of a peer's package, and of its PyTorch."""
    package = PACKAGES[name]
    code = f"from importlib.metadata import version as v; print(v({package!r}), v('torch'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise NotMeasured(f"not installed: {package}")
    own, torch = found.stdout.split()
    return f"torch {torch}" if package == "torch" else f"{package} {own}, torch {torch}"


def measure(name: str, python: str, archive: Path, rounds: int) -> Run:
    """Run a peer once, in an empty folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FEDPW_CACHE_DIR": str(archive.parent)}
    if name == OURS:
        path = (str(FOLDER.parent), os.environ.get("PYTHONPATH"))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    ends: list[float] = []
    with tempfile.TemporaryDirectory(prefix="peer-") as temporary, peak_memory() as memory:
        folder = Path(temporary)
        began = time.monotonic()
        with (folder / "printed.txt").open("w") as printed:
            process = subprocess.Popen(
                [python, *words(name, archive, rounds, folder)],
                cwd=folder,
                env=environment,
                stdout=printed,
                stderr=subprocess.STDOUT,
            )
        while process.poll() is None and time.monotonic() < began + SECONDS_AT_MOST:
            ends += [time.monotonic()] * (len(accuracies(name, folder)) - len(ends))
            time.sleep(0.02)
        exit = time.monotonic()
        reached = accuracies(name, folder)
        lines = (folder / "printed.txt").read_text(errors="replace").split("\n")
    if process.returncode is None:
        raise NotMeasured(f"stopped: not done in {SECONDS_AT_MOST} s")
    if process.returncode != 0 or len(reached) != rounds:
        raise NotMeasured(f"failed: {next(filter(None, reversed(lines)), 'it said nothing')}")
    # The last line may have come with the exit.
    ends += [exit] * (rounds - len(ends))
    each = statistics.median(after - before for before, after in pairwise(ends))
    first, end, total = ends[0] - began, exit - ends[-1], exit - began
    return Run(first, each, end, total, 100 * reached[-1], memory[0])


def words(name: str, archive: Path, rounds: int, folder: Path) -> list[str]:
    """Return what Python is to run for a peer."""
    if name == OURS:
        command = ["-c", "from fedpw_flwr.lab.command import command; command()", *WORK]
        places = [f"dataset.folder={archive.parent}", f"hydra.run.dir={folder / 'run'}"]
        return [*command, *places, f"rounds={rounds}"]
    return [str(FOLDER / "peers" / f"{name}.py"), "--data", str(archive), "--rounds", str(rounds)]


def accuracies(name: str, folder: Path) -> list[float]:
    """Return the accuracy after each round that is done."""
    places = {OURS: "run/metrics.jsonl", "flower_quickstart": "rounds.txt"}
    file = folder / places.get(name, "printed.txt")
    text = file.read_text(errors="replace") if file.is_file() else ""
    if name != OURS:
        return [float(x) for x in re.findall(r"^round \d+ accuracy ([\d.]+)\n", text, re.MULTILINE)]
    records = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [record["mean_accuracy"] for record in records if record["round"] > 0]


def medians(runs: Sequence[Run]) -> Run:
    """Return the median of each figure."""
    return Run(*(statistics.median(values) for values in zip(*map(astuple, runs), strict=True)))


def figures(runs: Mapping[str, Sequence[Run]], versions: Mapping[str, str], load: float) -> Table:
    """Return the medians of each peer, or why there are none; `load` is other programs'."""
    rows = []
    for name, done in runs.items():
        cells = [""] * len(FIGURES)
        if done:
            values = zip(astuple(medians(done)), FIGURES.values(), strict=True)
            cells = [f"{value:.{decimals}f}" for value, decimals in values]
        rows.append((name, versions[name], *cells))
    return Table(
        "fedpw beside its peers",
        ("program", "version", *FIGURES),
        tuple(rows),
        f"Medians of {max(map(len, runs.values()))} alternating runs on {cores()} cores of "
        f"{cpu_model()}, one thread a process; load average before: {load:.1f}; {commit()}.",
    )


def goals(runs: Mapping[str, Sequence[Run]]) -> Table:
    """Return fedpw's figures over those of the peers that it is to be measured by."""
    compared = {
        ("first round", "pfl_research", "first"): 1.5,
        ("all rounds", "plain_loop", "total"): 1.25,
        ("a round", "two_processes", "each"): 1.12,
    }
    rows = []
    if ours := runs.get(OURS):
        for (what, peer, figure), at_most in compared.items():
            if theirs := runs.get(peer):
                mine, other = (getattr(medians(done), figure) for done in (ours, theirs))
                cells = (f"{mine:.2f}", f"{other:.2f}", f"{mine / other:.2f}", f"{at_most}")
                rows.append((what, peer, *cells))
        rows.append(("after the last round", "", f"{medians(ours).end:.2f}", "", "", "2 s"))
    header = ("what", "beside", "fedpw, s", "peer, s", "ratio", "at most")
    return Table("What fedpw takes of its peers' time", header, tuple(rows))


if __name__ == "__main__":
    main()
