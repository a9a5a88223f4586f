"""A thousand clients on two cores: does the run finish, does the server's memory stay flat.

    python benchmarks/many_clients.py
    python benchmarks/many_clients.py --data DATA

Runs the command `fedpw` in earnest, with checkpoints: a tenth of the clients trains in a round, and
a tenth evaluates. Memory is read from outside (psutil) while the run goes on. The ServerApp runs in
the command's process, which also holds the messages in flight and a thousand clients' contexts, and
maps Ray's object store; what only this process has is in a column of its own. What the checkpoint
holds is read back from disk after the run.

DATA holds mnist.npz, usps.npz, svhn.npz and mnistm.npz; where it is not given, the digits that come
with the package are divided, one or two images a client.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from report import Table

from fedpw_flwr.checkpoint import CheckpointStore
from fedpw_flwr.lab.runs.records import RoundRecord
from fedpw_flwr.lab.runs.run_folder import RunFolder

FOLDER = Path(__file__).resolve().parent

DOMAINS = 4
WORKER = "ray::ClientWorker"

_LOOK_SECONDS = 0.05
_SAMPLE_SECONDS = 0.25
_SEARCH_SECONDS = 2.0

MODEL = ("model=cnn", "model.width=8")


@dataclass(frozen=True)
class Size:
    """How large a run is."""

    clients: int = 1000
    """A multiple of the number of domains."""
    fraction_train: float = 0.1
    fraction_evaluate: float = 0.1
    rounds: int = 20
    checkpoint_every: int = 5

    @property
    def shown(self) -> list[int]:
        """Rounds that have a row: the first, every fifth and the last."""
        return sorted({1, *range(5, self.rounds + 1, 5), self.rounds})


TINY = Size(12, fraction_train=0.34, rounds=2, checkpoint_every=1)


@dataclass(frozen=True)
class Memory:
    """Resident memory of the run's processes at one moment, in bytes."""

    finished: int
    """Rounds that were recorded by then."""
    server: int
    """Of the process with the ServerApp."""
    own: int
    """What of it no other process shares (no files, no object store)."""
    workers: tuple[int, ...]


@dataclass
class Watch:
    """Finds a run's processes and reads their memory."""

    command: psutil.Process
    samples: list[Memory] = field(default_factory=list)
    _workers: list[psutil.Process] = field(default_factory=list)
    _searched: float = 0.0

    def sample(self, finished: int) -> None:
        """Read the memory of all processes; nothing where no worker runs yet."""
        if time.monotonic() - self._searched > _SEARCH_SECONDS:
            self._searched, self._workers = time.monotonic(), []
            with suppress(psutil.Error):
                below = self.command.children(recursive=True)
                # Ray gives its workers a title, which is their command line.
                self._workers = [one for one in below if _title_of(one).startswith(WORKER)]
        sizes = []
        for process in self._workers:
            with suppress(psutil.Error):
                sizes.append(process.memory_info().rss)
        # After the last round, the command may have ended them.
        sizes = sizes or [size for sample in self.samples[-1:] for size in sample.workers]
        if sizes:
            with suppress(psutil.Error):
                memory = self.command.memory_info()
                own = memory.rss - memory.shared
                self.samples.append(Memory(finished, memory.rss, own, tuple(sizes)))


def _title_of(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return "".join(process.cmdline()[:1])
    return ""


@dataclass(frozen=True)
class Run:
    """What a run left, and what its processes took meanwhile."""

    size: Size
    records: tuple[RoundRecord, ...]
    samples: tuple[Memory, ...]
    seconds: float
    checkpointed: int
    """Round of the newest checkpoint."""

    weights: frozenset[int]
    """Clients that have a direction and a loss term in the checkpoint."""

    state_bytes: int

    @property
    def trained(self) -> frozenset[int]:
        """Clients whose updates were aggregated at least once."""
        parts = [record.clients.id for record in self.records if record.clients is not None]
        return frozenset(client for part in parts for client in part)

    def after(self, server_round: int) -> Memory:
        """Return the first reading after a round was recorded."""
        return next(sample for sample in self.samples if sample.finished >= server_round)

    def highest(self, server_round: int) -> int:
        """Return the most that the server's process had resident during a round."""
        during = [s.server for s in self.samples if s.finished == server_round - 1]
        return max([*during, self.after(server_round).server])

    def growth(self, first: int, last: int) -> float:
        """Return how much the server's own memory grew a round, in bytes: Theil and Sen's slope.

        The median of the slopes between all pairs of rounds, which one round that happened to be
        read before its garbage was collected does not move.
        """
        own = {number: self.after(number).own for number in range(first, last + 1)}
        return statistics.median(
            (own[later] - own[earlier]) / (later - earlier)
            for earlier in own
            for later in own
            if later > earlier
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--data", type=Path, help="folder with the archives of the four domains")
    parser.add_argument("--rounds", type=int, default=Size.rounds)
    parser.add_argument("--clients", type=int, default=Size.clients, help="a multiple of four")
    arguments = parser.parse_args()
    size = TINY if arguments.tiny else Size(arguments.clients, rounds=arguments.rounds)
    print("\n\n".join(table.markdown() for table in tables(size, arguments.data)))


def tables(size: Size, data: Path | None = None) -> list[Table]:
    """Run the command once and put its rounds and what it saved into tables."""
    run = measure(size, data)
    return [memory_table(run), outcome_table(run)]


def measure(size: Size, data: Path | None = None) -> Run:
    """Run the command, reading its processes' memory, and read back what it left.

    Raises
    ------
    RuntimeError
        If the command fails; holds what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="many-clients-") as temporary:
        folder = RunFolder(Path(temporary, "run"))
        output = Path(temporary, "output.txt")
        path = [str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]
        began = time.monotonic()
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-c"),
                    "from fedpw_flwr.lab.command import main; main()",
                    *words(size, data),
                    f"hydra.run.dir={folder.path}",
                ],
                cwd=temporary,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
            try:
                samples = watch(process, folder.metrics_file)
            finally:
                # It ends the rest where it is still running.
                process.terminate()
                process.wait()
        seconds = time.monotonic() - began
        if process.returncode != 0:
            raise RuntimeError(f"fedpw failed:\n{output.read_text(encoding='utf-8')}")
        newest = CheckpointStore(folder.checkpoints).newest()
        assert newest is not None
        weighting = newest.state["strategy"]["weighting"]
        known = [{int(client) for client in weighting[s]["clients"]} for s in ("direction", "loss")]
        state_file = folder.checkpoints / f"round-{newest.round:06}" / "state.json"
        return Run(
            size,
            tuple(folder.read_rounds()),
            tuple(samples),
            seconds,
            newest.round,
            frozenset(set.intersection(*known)),
            state_file.stat().st_size,
        )


def words(size: Size, data: Path | None) -> list[str]:
    """Write the run as the command takes it."""
    dataset = ["dataset=embedded_digits"]
    if data is not None:
        dataset = ["dataset=four_domains", f"dataset.folder={data.resolve()}"]
    return [
        *dataset,
        "dataset.image_size=16",
        "partition=by_domain",
        f"partition.clients_per_domain={size.clients // DOMAINS}",
        *MODEL,
        f"strategy.fraction_train={size.fraction_train}",
        f"strategy.fraction_evaluate={size.fraction_evaluate}",
        f"rounds={size.rounds}",
        f"runtime.checkpoint_every={size.checkpoint_every}",
        "runtime.total_cpus=2",
    ]


def watch(process: subprocess.Popen[bytes], metrics: Path) -> list[Memory]:
    """Read memory until the command ends: four times a second, and where a round was recorded."""
    seen = Watch(psutil.Process(process.pid))
    lines, size, next_sample = 0, 0, time.monotonic()
    while process.poll() is None:
        recorded = False
        if metrics.is_file() and metrics.stat().st_size != size:
            text = metrics.read_bytes()
            size, recorded = len(text), text.count(b"\n") > lines
            lines = text.count(b"\n")
        if recorded or time.monotonic() >= next_sample:
            # The line of round 0 is there before any round is.
            seen.sample(max(0, lines - 1))
            next_sample = time.monotonic() + _SAMPLE_SECONDS
        time.sleep(_LOOK_SECONDS)
    return seen.samples


def memory_table(run: Run) -> Table:
    """Seconds and memory of some rounds."""
    rows = []
    for number in run.size.shown:
        memory = run.after(number)
        rows.append(
            (
                f"{number}",
                f"{run.records[number].seconds:.1f}",
                _mebibytes(memory.server),
                _mebibytes(memory.own),
                _mebibytes(run.highest(number)),
                _mebibytes(max(memory.workers, default=0)),
            )
        )
    size = run.size
    first = min(5, size.rounds - 1)
    growth = run.growth(first, size.rounds) / 2**20
    note = (
        f"Resident memory in MiB when the round was recorded. From round {first} to "
        f"{size.rounds} the server's own memory grew by {growth:+.2f} MiB a round (median slope "
        "between all pairs of rounds)."
    )
    header = (
        *("round", "seconds", "ServerApp's process", "of it its own"),
        *("highest in the round", "largest worker"),
    )
    return Table(f"Memory over the rounds, {_title(run)}", header, tuple(rows), note)


def outcome_table(run: Run) -> Table:
    """What the run took, reached and saved."""
    asked = sum(len(record.clients.id) for record in run.records if record.clients is not None)
    left_out = sum((record.quarantined or 0) + (record.failed or 0) for record in run.records)
    last = run.records[-1]
    seconds = statistics.median(record.seconds for record in run.records[1:])
    saved = f"{len(run.trained & run.weights)}"
    rows = (
        ("seconds from command to end", f"{run.seconds:.0f}"),
        ("seconds a round, median", f"{seconds:.1f}"),
        ("rounds recorded", f"{last.round}"),
        ("updates aggregated", f"{asked:,}"),
        ("replies left out", f"{left_out}"),
        ("clients that trained at least once", f"{len(run.trained)}"),
        (f"of them with weights in the checkpoint of round {run.checkpointed}", saved),
        ("bytes of its state.json", f"{run.state_bytes:,}"),
        ("mean accuracy over the domains, %: initial model", _percent(run.records[0])),
        (f"after round {last.round}", _percent(last)),
    )
    return Table(f"What became of it, {_title(run)}", ("what", "figure"), rows)


def _title(run: Run) -> str:
    size = run.size
    trained = max(len(r.clients.id) for r in run.records if r.clients is not None)
    return f"{size.clients} clients, {trained} a round, {size.rounds} rounds"


def _percent(record: RoundRecord) -> str:
    return f"{100 * record.spread.mean:.1f}"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f}"


if __name__ == "__main__":
    main()
