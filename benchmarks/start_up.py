"""Where the seconds go from the command `fedpw` to the first trained client.

    python benchmarks/start_up.py --repeats 5
    python benchmarks/start_up.py --against ../before --overrides experiment=four_domains ...

Runs the command in earnest, for one round, with the folder timeline/ on PYTHONPATH: it makes every
process of the launch (command, SuperLink, SuperExec, `flwr run`, simulation, Ray's, workers) note
when it started, what it imported and when some calls began and ended. The phases of the table lie
one after the other on the way to the first trained client; what happens beside them is not on the
way. The first run, which reads files cold, is not counted. With --against, runs of another checkout
alternate with this one's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from report import Table

FOLDER = Path(__file__).resolve().parent
TIMELINE = FOLDER / "timeline"

FIRST_CLIENT = "ClientApp.__call__"
"""The call whose first end is the end of the start-up."""


@dataclass(frozen=True)
class Phase:
    """A stretch of the way: it ends where a process enters or leaves a call, or an import."""

    name: str
    whose: str
    process: str
    """Words of the process's command; the worker is the process that trained the first client."""

    event: str
    edge: str = "start"
    """Whether the event's ``start`` or ``end`` is meant."""


PHASES = (
    Phase("command: Python, hydra, configuration", "ours", "fedpw", "LocalSuperLink._start"),
    Phase("command: import PyTorch", "PyTorch", "fedpw", "import torch", "end"),
    Phase("command: import Flower", "Flower", "fedpw", "build_experiment"),
    Phase("command: images, shares, check", "ours", "fedpw", "LocalSuperLink.wait_until_ready"),
    Phase("SuperLink: what its start still takes", "Flower", "fedpw", "_Run._submit"),
    Phase("flwr run, until the simulation starts", "Flower", "flwr-simulation", "process"),
    Phase(
        *("simulation: imports, app, until Ray starts", "Flower, PyTorch"),
        *("flwr-simulation", "RayBackend.__init__"),
    ),
    Phase("Ray: start", "Ray", "flwr-simulation", "RayBackend.__init__", "end"),
    Phase(
        *("ServerApp: what it still takes to send", "ours"),
        *("flwr-simulation", "InMemoryGrid.push_messages"),
    ),
    Phase("worker: process, import Ray", "Ray", "worker", "import flwr"),
    Phase("worker: import Flower", "Flower", "worker", "import torch"),
    Phase("worker: import PyTorch", "PyTorch", "worker", "import torch", "end"),
    Phase("worker: import the ClientApp", "ours", "worker", FIRST_CLIENT),
    Phase("worker: compose, images, shares", "ours", "worker", "build_experiment", "end"),
    Phase(
        "worker: train, with PyTorch's first step", "ours, PyTorch", "worker", FIRST_CLIENT, "end"
    ),
)


@dataclass(frozen=True)
class Note:
    event: str
    start: float
    end: float
    cpu: float


@dataclass(frozen=True)
class StartUp:
    """One start: seconds of each phase and of the whole, and processor seconds by process."""

    phases: dict[str, float]
    total: float
    processor: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout, run in turn with this one")
    parser.add_argument("--overrides", nargs="*", default=[], help="of the configuration")
    arguments = parser.parse_args()
    if arguments.tiny:
        printed = tables(tiny=True)
    else:
        printed = tables_of(arguments.overrides, arguments.repeats, arguments.against)
    print("\n\n".join(table.markdown() for table in printed))


def tables(tiny: bool = False) -> list[Table]:
    """Measure the default experiment; tiny: a small network, once, without a run to warm up."""
    return tables_of(["model.width=2"], 1, warm_up=False) if tiny else tables_of([], 5)


def tables_of(
    overrides: Sequence[str], repeats: int, against: Path | None = None, *, warm_up: bool = True
) -> list[Table]:
    """Measure an experiment, and in turn that of another checkout."""
    checkouts = {"this": FOLDER.parent, **({"other": against.resolve()} if against else {})}
    measured: dict[str, list[StartUp]] = {name: [] for name in checkouts}
    for repeat in range(-1 if warm_up else 0, repeats):
        for name, checkout in checkouts.items():
            start_up = measure(checkout, overrides)
            if repeat >= 0:
                measured[name].append(start_up)
    experiment = " ".join(overrides) or "the default experiment"
    note = f"Medians of {repeats}, each row its own; the total is measured, not added up."
    return [
        _table(
            f"From the command to the first trained client, {experiment}",
            ("phase", "whose"),
            [(phase.name, phase.whose) for phase in PHASES],
            {name: [run.phases for run in runs] for name, runs in measured.items()},
            {name: [run.total for run in runs] for name, runs in measured.items()},
            note,
        ),
        _table(
            f"Processor seconds until then, {experiment}",
            ("process",),
            [(kind,) for kind in KINDS.values()],
            {name: [run.processor for run in runs] for name, runs in measured.items()},
            {
                name: [sum(run.processor.values()) for run in runs]
                for name, runs in measured.items()
            },
            "As far as the processes' own notes reach; processes that are no Python are left out.",
        ),
    ]


def measure(checkout: Path, overrides: Sequence[str]) -> StartUp:
    """Run the command once and read what its processes noted.

    Raises
    ------
    RuntimeError
        If the command fails; holds what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="start-up-") as temporary:
        notes, run = Path(temporary, "notes"), Path(temporary, "run")
        notes.mkdir()
        path = [str(TIMELINE), str(checkout), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "FEDPW_TIMELINE": str(notes),
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
        }
        command = [sys.executable, "-c", "from fedpw_flwr.lab.command import main; main()"]
        began = time.monotonic()
        process = subprocess.run(
            [*command, "rounds=1", f"hydra.run.dir={run}", *overrides],
            cwd=temporary,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        if process.returncode != 0:
            raise RuntimeError(f"fedpw failed:\n{process.stdout}\n{process.stderr}")
        return read_notes(notes, began)


def read_notes(folder: Path, began: float) -> StartUp:
    """Find the phases in the notes of a launch that began at a time of the monotonic clock."""
    processes = [_read(file) for file in folder.glob("*.jsonl")]
    worker = min(
        (notes for notes in processes if _find(notes, FIRST_CLIENT)),
        key=lambda notes: _first(notes, FIRST_CLIENT).end,
    )
    finished = _first(worker, FIRST_CLIENT).end
    phases = {}
    reached = began
    for phase in PHASES:
        candidates = [worker] if phase.process == "worker" else _of_kind(processes, phase.process)
        found = [_first(notes, phase.event) for notes in candidates if _find(notes, phase.event)]
        if not found:
            continue
        time_of_edge = min(getattr(note, phase.edge) for note in found)
        # What had happened before the phase in front of it ended was not on the way.
        phases[phase.name] = max(0.0, time_of_edge - reached)
        reached = max(reached, time_of_edge)
    processor = dict.fromkeys(KINDS.values(), 0.0)
    for notes in processes:
        until = [note.cpu for note in notes if note.end <= finished]
        processor[_kind(notes)] += max(until, default=0.0)
    return StartUp(phases, finished - began, processor)


KINDS = {
    "lab.command": "command",
    "flower-superlink": "SuperLink",
    "flower-superexec": "SuperExec",
    "flwr run": "flwr run",
    "flwr-simulation": "simulation",
    "default_worker.py": "Ray's workers",
    "": "Ray's other processes, guard",
}
"""How the commands of the processes are told apart."""


def _kind(notes: list[Note]) -> str:
    words = " ".join(note.event for note in notes if note.event.startswith("process "))
    return next(kind for word, kind in KINDS.items() if word in words)


def _of_kind(processes: list[list[Note]], word: str) -> list[list[Note]]:
    kind = "command" if word == "fedpw" else KINDS[word]
    return [notes for notes in processes if _kind(notes) == kind]


def _read(file: Path) -> list[Note]:
    entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [Note(e["event"], e["start"], e["end"], e["cpu"]) for e in entries]


def _find(notes: list[Note], event: str) -> list[Note]:
    return [n for n in notes if n.event == event or n.event.startswith(f"{event} ")]


def _first(notes: list[Note], event: str) -> Note:
    return min(_find(notes, event), key=lambda note: note.start)


def _table(
    title: str,
    key_header: tuple[str, ...],
    keys: list[tuple[str, ...]],
    measured: dict[str, list[dict[str, float]]],
    totals: dict[str, list[float]],
    note: str,
) -> Table:
    columns = ["s"] if len(measured) == 1 else [f"{name}, s" for name in measured]
    rows = [
        (
            *key,
            *(
                _median([run[key[0]] for run in runs if key[0] in run])
                for runs in measured.values()
            ),
        )
        for key in keys
        if any(key[0] in run for runs in measured.values() for run in runs)
    ]
    blank = ("",) * (len(key_header) - 1)
    rows.append(("total", *blank, *(_median(values) for values in totals.values())))
    return Table(title, (*key_header, *columns), tuple(rows), note)


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}" if values else ""


if __name__ == "__main__":
    main()
