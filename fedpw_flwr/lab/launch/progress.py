"""Show how a run fares while it runs.

The server writes one line per round to `metrics.jsonl`, and the command, another process, reads it.
A terminal shows a bar with the figures that matter for fairness, a pipe or a CI log one plain line
per round: between domains, or, where there is only one, between the clients. A run that is profiled
says at its end where the time went.
"""

import contextlib
import json
import statistics
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn

from fedpw_flwr.lab.runs.round_profile import MeanProfile, RoundProfile
from fedpw_flwr.lab.runs.run_folder import RunFolder, RunFolderError

_UNKNOWN = "-"
_WIDTH_WITH_BAR = 100


class RoundLines:
    """Read the lines of a `metrics.jsonl` as they are written; the file need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def read_new(self) -> list[dict[str, Any]]:
        """Return the rounds completed since the last call, one dictionary per line.

        A last line that is not complete yet comes with a later call; a complete line that is no
        JSON object is left out.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(0, 2)
                if file.tell() < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                complete, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return []
        self._offset += len(complete) + len(newline)
        return [record for line in complete.split(b"\n") if (record := _parsed(line)) is not None]


class RunProgress:
    """A progress display for one run of so many rounds; a context manager.

    It writes on standard output if not told otherwise: a bar on a terminal, lines elsewhere.
    """

    def __init__(self, metrics_file: Path, rounds: int, console: Console | None = None) -> None:
        self.rounds = rounds
        self.console = Console() if console is None else console
        self._metrics_file = metrics_file
        self._lines = RoundLines(metrics_file)
        self._first: tuple[int, float] | None = None
        self._latest: tuple[int, float] | None = None
        self._most_empty = 0.0
        self._profiles: dict[int, RoundProfile] = {}
        self._bar: Progress | None = None
        if self.console.is_terminal:
            columns: list[ProgressColumn] = [
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[figures]}", markup=False),
            ]
            if self.console.width < _WIDTH_WITH_BAR:
                # The figures are worth more than the bar.
                del columns[2]
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task("starting", total=None, figures="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, phase: str) -> None:
        """Tell in a few words what is going on while there is no round to show."""
        if self._bar is not None:
            self._bar.update(self._task, description=phase)
        else:
            self._print(phase)

    def update(self) -> None:
        """Read what was written since the last call and show it. Never raises for bad content."""
        for record in self._lines.read_new():
            self._show(record)

    def _show(self, record: Mapping[str, Any]) -> None:
        number = record.get("round")
        if not isinstance(number, int):
            return
        if self._first is None:
            self._warn_of_scarce_images()
        self._latest = (number, time.monotonic())
        self._first = self._first or self._latest

        # The round's figures
        done, figures, left = f"round {number}/{self.rounds}", _figures(record), self._time_left()
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=done,
                completed=number,
                total=self.rounds,
                figures=f"{figures}  {left}",
            )
        else:
            seconds = _number(record.get("seconds"))
            took = "" if seconds is None else f"  {seconds:.1f} s"
            self._print(f"{done}  {figures}{took}  {left}".rstrip())

        # Who is missing in it
        left_out = sum(_number(record.get(key)) or 0 for key in ("quarantined", "failed"))
        if left_out:
            replies = "1 reply" if left_out == 1 else f"{left_out:.0f} replies"
            self._print(
                f"warning: round {number} left out {replies} that could not be used; "
                "flower.log says which and why",
                style="yellow",
            )
        empty = _number(record.get("empty")) or 0.0
        if empty > self._most_empty:
            # It is no fault, and the same clients lack data in every round.
            self._most_empty = empty
            clients = "1 client" if empty == 1 else f"{empty:.0f} clients"
            self._print(f"round {number} left out {clients} without data; flower.log says which")

        # Where the time went
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, OverflowError):
            self._profiles[number] = RoundProfile.from_json(record["profile"])
        if number == self.rounds and self._profiles:
            for sentence in MeanProfile.of_rounds(self._profiles).sentences():
                self._print(sentence)

    def _warn_of_scarce_images(self) -> None:
        try:
            holdings = RunFolder(self._metrics_file.parent).read_holdings()
        except RunFolderError:
            return
        scarce = {} if holdings is None else holdings.scarce()
        if scarce:
            listed = ", ".join(f"{domain} ({each})" for domain, each in scarce.items())
            self._print(
                f"warning: clients train on fewer images than there are classes: {listed}; fewer "
                "clients, a larger share of the data (partition.share, partition.train_per_client) "
                "or a larger data set gives each more",
                style="yellow",
            )

    def _time_left(self) -> str:
        if self._first is None or self._latest is None or self._latest[0] == self._first[0]:
            return ""
        done = self._latest[0] - self._first[0]
        seconds = (self._latest[1] - self._first[1]) / done * (self.rounds - self._latest[0])
        return f"{timedelta(seconds=max(0, round(seconds)))} left"

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and value == value else None


def _percent(value: object) -> str:
    number = _number(value)
    return _UNKNOWN if number is None else f"{100 * number:.1f}"


def _figures(record: Mapping[str, Any]) -> str:
    """Describe a round: mean accuracy, spread between domains and the worst domain, in percent.

    With one domain these are the clients' own, beside the accuracy on the test set.
    """
    mean, spread = _percent(record.get("mean_accuracy")), _percent(record.get("std_accuracy"))
    worst = _percent(record.get("worst_accuracy"))
    accuracy = record.get("accuracy")
    if isinstance(accuracy, dict) and len(accuracy) == 1:
        return f"test set {mean} %{_clients_figures(record.get('client_accuracy'))}"
    known = {
        str(domain): number
        for domain, value in (accuracy.items() if isinstance(accuracy, dict) else ())
        if (number := _number(value)) is not None
    }
    named = f" ({min(known, key=lambda domain: known[domain])})" if known else ""
    return f"mean {mean} %  spread {spread}  worst {worst} %{named}"


def _clients_figures(accuracy: object) -> str:
    """Describe how the clients fare on their own test images; empty where they have none."""
    known = [_number(value) for value in accuracy] if isinstance(accuracy, list) else []
    values = [value for value in known if value is not None and 0 <= value <= 1]
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return (
        f"  clients: mean {_percent(statistics.fmean(values))} %  spread {_percent(spread)}  "
        f"worst {_percent(min(values))} %"
    )
