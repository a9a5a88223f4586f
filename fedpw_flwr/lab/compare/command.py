"""The command `fedpw-compare`: any set of finished runs as tables and plots.

    fedpw-compare outputs multirun --against fedavg --target 80
    fedpw-compare results/runs.tar.xz --only 'cifar10_*'

Finds all runs in and below the folders, or in tar files of such folders, puts those of one setting
together, and writes ``comparison.md``, ``comparison.csv``, ``differences.csv`` and plots. Runs
that did not finish are listed by name.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedpw_flwr.lab.compare.compared import ComparedSetting
from fedpw_flwr.lab.compare.csv_files import write_comparison_csv, write_differences_csv
from fedpw_flwr.lab.compare.earlier_plots import plots_of_page, remove_plots
from fedpw_flwr.lab.compare.formats import UNKNOWN, percent
from fedpw_flwr.lab.compare.markdown import write_markdown
from fedpw_flwr.lab.compare.runs import ComparisonError, LeftOutRun, find_runs
from fedpw_flwr.lab.compare.settings import Method, Setting, group_runs
from fedpw_flwr.lab.compare.statistics import (
    Window,
    chance_accuracy,
    default_target,
    windows_of,
)
from fedpw_flwr.lab.compare.tables import (
    figure_heading,
    figures_table,
    target_table,
)
from fedpw_flwr.lab.compare.tensorboard import check_tensorboard, write_events
from fedpw_flwr.lab.launch.terminal import write_any_text
from fedpw_flwr.lab.runs.run_folder import RunFolder, RunFolderError

__all__ = ["compare", "main"]

FOLDER = "comparison"

_PRINTED = (
    *("domains.mean", "domains.std", "domains.worst"),
    *("clients.mean", "clients.std", "clients.worst_10"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : Sequence[str] | None (default: None)
        Command line without the program's name; None takes the process's own.

    Returns
    -------
    int
        Exit status: 0, or 1 if there is nothing to compare or it cannot be written (argparse itself
        exits with 2).
    """
    write_any_text()
    options = _parser().parse_args(arguments)
    errors = Console(stderr=True, soft_wrap=True)
    try:
        compare(**vars(options))
    except (ComparisonError, RunFolderError) as error:
        errors.print(
            f"[bold red]fedpw-compare:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        return 1
    except OSError as error:
        errors.print(
            f"[bold red]fedpw-compare:[/] cannot write the comparison "
            f"({escape(str(error))}): choose another folder with --output",
            highlight=False,
            soft_wrap=True,
        )
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedpw-compare",
        description="Compare finished runs: Markdown and CSV tables, and plots.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="output folders of runs, folders that hold some at any depth, or tar files of runs",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="compare only runs whose folder's name is like this, such as 'cifar10_*'; repeatable",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help=f"where to write (default: {FOLDER}/ in the folders' common parent)",
    )
    parser.add_argument(
        "--against",
        metavar="METHOD",
        help="method that the others are compared with (default: fedavg, else the first)",
    )
    parser.add_argument(
        "--target",
        type=_percentage,
        metavar="PERCENT",
        help="mean accuracy to count the rounds to (default: 95 %% of what --against has)",
    )
    parser.add_argument(
        "--last",
        type=_count,
        default=5,
        metavar="ROUNDS",
        help="how many last rounds to average, beside the last one alone (default: 5)",
    )
    parser.add_argument(
        "--tensorboard",
        type=Path,
        metavar="FOLDER",
        help="also write TensorBoard event files, one folder a run",
    )
    return parser


def compare(
    paths: Sequence[Path],
    *,
    only: Sequence[str] | None = None,
    output: Path | None = None,
    against: str | None = None,
    target: float | None = None,
    last: int = 5,
    tensorboard: Path | None = None,
    console: Console | None = None,
) -> Path:
    """Compare all finished runs in and below some folders.

    Parameters
    ----------
    paths : Sequence[Path]
        Run folders, folders that hold some at any depth, or tar files of runs.
    only : Sequence[str] | None (default: None)
        Patterns as a shell has them; a run is compared if its folder's name is like one of them.
        None: all are.
    output : Path | None (default: None)
        Where to write; None: ``comparison/`` in the paths' common parent. Plots there that an
        earlier ``comparison.md`` shows and the new one does not are removed.
    against : str | None (default: None)
        Label or strategy of the method that the others are compared with; None: fedavg, or the
        first method where there is none.
    target : float | None (default: None)
        Mean accuracy in percent that rounds are counted to; None: 95 % of what the method
        compared with has in the last rounds, or the best, where that one is near chance.
    last : int (default: 5)
        How many last rounds to average, at least 1; all trained ones where there are fewer.
    tensorboard : Path | None (default: None)
        Where to write event files; None: nowhere.
    console : Console | None (default: None)
        Where to print; None: standard output.

    Returns
    -------
    Path
        The page, ``comparison.md``.

    Raises
    ------
    ComparisonError
        If no run has finished, none is of the method `against`, or TensorBoard is missing.
    RunFolderError
        If a run's rounds can no longer be read.
    """
    console = console or Console()
    if tensorboard is not None:
        check_tensorboard()
    runs, left_out = find_runs(paths, only)
    if not runs:
        raise ComparisonError(_nothing(paths, only, left_out))
    settings, repeated = group_runs(runs)
    left_out = sorted([*left_out, *repeated], key=lambda run: run.path)
    references = {setting.label: setting.reference(against) for setting in settings}
    found = [method.label for method in references.values() if method is not None]
    labels = [*found, *(method.label for setting in settings for method in setting.methods)]
    if against is not None and not found:
        raise ComparisonError(
            f"no run is of the method {against!r} to compare with: there are "
            f"{', '.join(dict.fromkeys(labels))}"
        )

    # Matplotlib and SciPy take a second to import, which a mistyped path should not cost.
    from fedpw_flwr.lab.compare.plots.draw import write_plots
    from fedpw_flwr.lab.compare.plots.looks import give_looks

    output = (output or _common_parent(paths) / FOLDER).resolve()
    output.mkdir(parents=True, exist_ok=True)
    looks = give_looks(labels)
    page, *tables = (
        output / name for name in ("comparison.md", "comparison.csv", "differences.csv")
    )
    earlier = plots_of_page(page)
    compared = []
    for setting in settings:
        folder = output / setting.slug if len(settings) > 1 else output
        windows, reference = windows_of(setting, last), references[setting.label]
        wanted, note = _target(target, setting, reference, windows[-1])
        plots = write_plots(folder, setting, looks, windows[-1], wanted)
        compared.append(ComparedSetting(setting, windows, reference, wanted, note, plots))
    write_markdown(page, compared, left_out)
    write_comparison_csv(tables[0], compared)
    write_differences_csv(tables[1], compared)
    remove_plots(earlier.difference(*(each.plots for each in compared)), output)
    for each in compared:
        _print_setting(console, each)
    _print_left_out(console, left_out)
    drawn = sum(len(each.plots) for each in compared)
    lines = [f"Tables and {drawn} plots: {page}", *map(str, tables)]
    if tensorboard is not None:
        events = write_events(tensorboard, settings)
        lines.append(f"TensorBoard events of {len(events)} runs: {tensorboard}")
    for line in lines:
        console.print(escape(line), highlight=False, soft_wrap=True)
    return page


def _target(
    wanted: float | None, setting: Setting, reference: Method | None, window: Window
) -> tuple[float, str]:
    if wanted is not None:
        return wanted, "As asked for by --target."
    found, label = default_target(setting, reference, window)
    return found, f"95 % of {label}'s mean accuracy, {window.label}."


def _nothing(
    paths: Sequence[Path], only: Sequence[str] | None, left_out: Sequence[LeftOutRun]
) -> str:
    where = ", ".join(str(path) for path in paths)
    if not left_out and only is not None:
        return f"there is no run with a name like {' or '.join(only)} in {where}: check --only"
    if not left_out:
        return f"there is no run in {where}: give folders that hold metrics.jsonl, at any depth"
    listed = "\n".join(f"  {run.path}: {run.status} ({run.reason})" for run in left_out)
    return f"no run in {where} has finished, so there is nothing to compare\n{listed}"


def _common_parent(paths: Sequence[Path]) -> Path:
    folders = [path if path.is_dir() else path.parent for path in map(Path.resolve, paths)]
    common = Path(os.path.commonpath(folders))
    return common.parent if RunFolder(common).metrics_file.exists() else common


def _print_setting(console: Console, each: ComparedSetting) -> None:
    """Print the figures that papers put into their main tables; the page has all."""
    setting, window = each.setting, each.windows[-1]
    figures = (*setting.domain_figures, *setting.client_figures)
    shown = [figure for figure in figures if figure.key in _PRINTED]
    content = figures_table(setting, shown, window)
    chance = chance_accuracy(setting)
    guessing = f"; chance: {percent(chance)}" if math.isfinite(chance) else ""
    counts = {len(method.runs) for method in setting.methods}
    alike = f", {max(counts)} seeds" if len(counts) == 1 and counts != {1} else ""
    title = f"{escape(setting.label)}\n{window.label}{alike}, %{guessing}"
    hidden = {1} if alike else set()
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    headings = [figure_heading(figure, of_whom=True) for figure in shown]
    for place, heading in enumerate((*content.columns[:2], *headings)):
        if place not in hidden:
            _add_column(table, heading, [row[place] for row in content.rows])
    reached = target_table(setting, each.target) if math.isfinite(each.target) else None
    if reached is not None:
        cells = [_reached(row) for row in reached.rows]
        _add_column(table, f"rounds to {percent(each.target)}", cells)
    order = sorted(
        range(len(content.rows)), key=lambda number: setting.methods[number] is not each.reference
    )
    for number, row in ((number, content.rows[number]) for number in order):
        cells = [
            f"[bold]{escape(cell)}[/]" if (number, place) in content.best else escape(cell)
            for place, cell in enumerate(row)
            if place not in hidden
        ]
        if reached is not None:
            cells.append(_reached(reached.rows[number]))
        table.add_row(*cells)
    console.print(table)


def _add_column(table: Table, heading: str, cells: Sequence[str]) -> None:
    # Where a terminal is narrow, lines break between words: half a figure would be another figure.
    words = " ".join((heading, *cells)).split()
    table.add_column(
        escape(heading),
        justify="right" if table.columns else "left",
        min_width=max(map(len, words)),
        overflow="fold",
    )


def _reached(row: Sequence[str]) -> str:
    _, counted, mean, _ = row
    return f"{counted} seeds" if mean == UNKNOWN else mean


def _print_left_out(console: Console, left_out: Sequence[LeftOutRun]) -> None:
    for run in left_out:
        console.print(
            f"[bold yellow]left out, {run.status}:[/] {escape(str(run.path))} "
            f"({escape(run.reason)})",
            highlight=False,
            soft_wrap=True,
        )


def _percentage(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"choose a percentage above 0 and up to 100, not {text}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"choose a whole number of rounds from 1, not {text}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
