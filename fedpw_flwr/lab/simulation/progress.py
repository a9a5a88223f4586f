"""Show how a run fares while it runs.

A terminal shows a bar with the figures that matter for fairness, a pipe or a CI log one plain line
per round: between domains, or, where there is only one, between the clients. A run that is profiled
says at its end where the time went.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn

from fedpw_flwr.lab.runs.records import RoundRecord
from fedpw_flwr.lab.runs.round_profile import MeanProfile, RoundProfile
from fedpw_flwr.lab.runs.run_folder import REPORT_FILE, RunFolder, RunFolderError
from fedpw_flwr.lab.runs.written import number

_WIDTH_WITH_BAR = 100


class Display:
    """What a command shows of its runs; a context manager.

    It writes on standard output if not told otherwise: bars on a terminal, lines elsewhere.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = Console() if console is None else console
        self.bars: Progress | None = None
        self._overall: TaskID | None = None
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
            self.bars = Progress(*columns, console=self.console)

    def __enter__(self) -> Self:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bars is not None:
            self.bars.stop()

    def overall(self, text: str) -> None:
        """Show on a terminal, as the first line, how far all runs are."""
        if self.bars is not None:
            if self._overall is None:
                self._overall = self.bars.add_task("", total=None, figures="")
            self.bars.update(self._overall, description=text)

    def print(self, text: str, style: str | None = None) -> None:
        """Print a line of plain text, above the bars."""
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class RunProgress:
    """How far one run of so many rounds is; a context manager.

    It has a name where there are more than one, whose line then makes room for the next run's.
    """

    def __init__(self, display: Display, folder: RunFolder, rounds: int, name: str = "") -> None:
        self.rounds = rounds
        self._display, self._bars, self._name = display, display.bars, name
        self._prefix = f"{name}: " if name else ""
        self._folder = folder
        self._first: tuple[int, float] | None = None
        """The first round that was shown, and when."""
        self._most_empty = 0
        self._profiles: dict[int, RoundProfile] = {}

    def __enter__(self) -> Self:
        if self._bars is not None:
            words = f"{self._prefix}starting"
            self._task = self._bars.add_task(words, total=None, figures="")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None and self._name:
            self._bars.remove_task(self._task)

    def say(self, phase: str) -> None:
        """Tell in a few words what is going on while there is no round to show."""
        if self._bars is not None:
            self._bars.update(self._task, description=f"{self._prefix}{phase}")
        else:
            self._print(phase)

    def show(self, record: RoundRecord) -> None:
        """Show a round that has ended."""
        which, now = f"round {record.round}", time.monotonic()
        if self._first is None:
            self._first = record.round, now
            self._warn_of_scarce_data()
            if not self._name:
                self._print(f"in a browser: {self._folder.path / REPORT_FILE}")

        # The round's figures
        done, figures, left = f"{which}/{self.rounds}", _figures(record), ""
        if record.round > self._first[0]:
            each = (now - self._first[1]) / (record.round - self._first[0])
            seconds = max(0, round(each * (self.rounds - record.round)))
            left = f"{timedelta(seconds=seconds)} left"
        if self._bars is not None:
            self._bars.update(
                self._task,
                description=f"{self._prefix}{done}",
                completed=record.round,
                total=self.rounds,
                figures=f"{figures}  {left}",
            )
        else:
            took = f"  {record.seconds:.1f} s" if math.isfinite(record.seconds) else ""
            self._print(f"{done}  {figures}{took}  {left}".rstrip())

        # Who is missing in it
        left_out = (record.quarantined or 0) + (record.failed or 0)
        if left_out:
            replies = "1 reply" if left_out == 1 else f"{left_out} replies"
            self._print(
                f"warning: {which} left out {replies} that could not be used; flower.log says "
                "which and why",
                style="yellow",
            )
        empty = record.empty or 0
        if empty > self._most_empty:
            # It is no fault, and the same clients lack data in every round.
            self._most_empty = empty
            clients = "1 client" if empty == 1 else f"{empty} clients"
            self._print(f"{which} left out {clients} without data; flower.log says which")

        # Where the time went
        if record.profile is not None:
            self._profiles[record.round] = record.profile
        if record.round == self.rounds and self._profiles:
            for sentence in MeanProfile.of_rounds(self._profiles).sentences():
                self._print(sentence)

    def _warn_of_scarce_data(self) -> None:
        try:
            holdings = self._folder.read_holdings()
        except RunFolderError:
            return
        scarce = {} if holdings is None else holdings.scarce()
        if scarce:
            listed = ", ".join(f"{domain} ({each})" for domain, each in scarce.items())
            self._print(
                f"warning: clients train on fewer examples than there are classes: {listed}; fewer "
                "clients, a larger share of the data (partition.share, partition.train_per_client) "
                "or a larger data set gives each more",
                style="yellow",
            )

    def _print(self, text: str, style: str | None = None) -> None:
        self._display.print(f"{self._prefix}{text}", style)


def _figures(record: RoundRecord) -> str:
    """Describe a round: mean accuracy, spread between domains and the worst domain, in percent.

    With one domain these are the clients' own, beside the accuracy on the test set.
    """
    spread = record.spread
    if not record.accuracy:
        return "not tested"
    if len(record.accuracy) == 1:
        clients = _clients_figures(record.client_accuracy or [])
        return f"test set {number(100 * spread.mean, 1)} %{clients}"
    worst = min(record.accuracy, key=record.accuracy.__getitem__)
    where = f" % ({worst})" if math.isfinite(spread.worst) else ""
    auc = "" if record.pooled_auc is None else f"  AUC {number(record.pooled_auc, 3)}"
    return f"{_written(spread.mean, spread.std, spread.worst)}{where}{auc}"


def _clients_figures(accuracy: Sequence[float]) -> str:
    """Describe how the clients fare on their own test images; empty where they have none."""
    values = [value for value in accuracy if 0 <= value <= 1]
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"  clients: {_written(statistics.fmean(values), spread, min(values))} %"


def _written(mean: float, spread: float, worst: float) -> str:
    mean_, spread_, worst_ = (number(100 * value, 1) for value in (mean, spread, worst))
    return f"mean {mean_} %  spread {spread_}  worst {worst_}"
