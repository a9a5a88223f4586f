"""The command `fedpw-compare`: any set of finished runs as tables and plots.

    fedpw-compare outputs multirun --against fedavg --target 80
    fedpw-compare results/hospitals/runs.tar.xz --only '*_fedpw_*'

Finds all runs in and below the folders, or in tar files of such folders, puts those of one setting
together, and writes ``comparison.md``, the same as ``comparison.html``, ``comparison.csv``,
``differences.csv`` and plots. Runs that did not finish are listed by name.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedpw_flwr.lab.compare.markdown import plots_of_page, remove_plots, write_markdown
from fedpw_flwr.lab.compare.runs import ComparisonError, LeftOutRun, find_runs
from fedpw_flwr.lab.compare.settings import group_runs
from fedpw_flwr.lab.compare.statistics import default_target, windows_of
from fedpw_flwr.lab.compare.tables import (
    ComparedSetting,
    figure_heading,
    figures_table,
    target_table,
    write_csv_files,
)
from fedpw_flwr.lab.compare.tensorboard import write_events
from fedpw_flwr.lab.runs.run_folder import RunFolder, RunFolderError
from fedpw_flwr.lab.runs.written import UNKNOWN, percent
from fedpw_flwr.lab.simulation.terminal import write_any_text

FOLDER = "comparison"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, by default with the process's own arguments, and return its exit status.

    1: there is nothing to compare, or the comparison cannot be written; argparse exits with 2.
    """
    write_any_text()
    options = _parser().parse_args(arguments)
    try:
        compare(**vars(options))
        return 0
    except (ComparisonError, RunFolderError) as error:
        problem = str(error)
    except OSError as error:
        problem = f"cannot write the comparison ({error}): choose another folder with --output"
    text = f"[bold red]fedpw-compare:[/] {escape(problem)}"
    Console(stderr=True).print(text, highlight=False, soft_wrap=True)
    return 1


def _parser() -> argparse.ArgumentParser:
    description = "Compare finished runs: tables in Markdown, HTML and CSV, and plots."
    parser = argparse.ArgumentParser("fedpw-compare", description=description)
    folder: dict[str, Any] = {"type": Path, "metavar": "FOLDER"}
    parser.add_argument(
        "paths",
        nargs="+",
        help="output folders of runs, folders that hold some at any depth, or tar files of runs",
        **folder,
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="compare only runs whose folder's name is like this, such as 'cifar10_*'; repeatable",
    )
    where = f"where to write (default: {FOLDER}/ in the folders' common parent)"
    parser.add_argument("--output", help=where, **folder)
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
    events = "also write TensorBoard event files, one folder a run"
    parser.add_argument("--tensorboard", help=events, **folder)
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
    """Compare all finished runs in and below folders, or in tar files, and return the page's path.

    The parameters are the command's options; `output` is by default ``comparison/`` in the paths'
    common parent. Plots there that an earlier ``comparison.md`` shows and the new one does not are
    removed. Raises ComparisonError if no run has finished, none is of the method `against`, or
    TensorBoard is missing; RunFolderError if a run's rounds can no longer be read.
    """
    console = console or Console()
    if tensorboard is not None and find_spec("tensorboard") is None:
        raise ComparisonError(
            "writing event files takes TensorBoard, which is not installed: "
            'pip install "fedpw-flwr[tensorboard]"'
        )
    runs, left_out = find_runs(paths, only)
    if not runs:
        raise ComparisonError(_nothing(paths, only, left_out))
    settings, repeated = group_runs(runs)
    left_out = sorted([*left_out, *repeated], key=lambda run: run.path)
    references = [setting.reference(against) for setting in settings]
    found = [method.label for method in references if method is not None]
    labels = [*found, *(method.label for setting in settings for method in setting.methods)]
    if against is not None and not found:
        raise ComparisonError(
            f"no run is of the method {against!r} to compare with: there are "
            f"{', '.join(dict.fromkeys(labels))}"
        )

    # Matplotlib and SciPy take a second to import, which a mistyped path should not cost.
    from fedpw_flwr.lab.compare.html import write_html
    from fedpw_flwr.lab.compare.plots.draw import write_plots
    from fedpw_flwr.lab.plots.looks import method_looks

    # Decide what to show of each setting, and draw its plots.
    output = (output or _common_parent(paths) / FOLDER).resolve()
    output.mkdir(parents=True, exist_ok=True)
    earlier = plots_of_page(page := output / "comparison.md")
    looks = method_looks(labels)
    compared = []
    for setting, reference in zip(settings, references, strict=True):
        folder = output / setting.slug if len(settings) > 1 else output
        windows = windows_of(setting, last)
        wanted, note = default_target(setting, reference, windows[-1])
        if target is not None:
            wanted, note = target, "As asked for by --target."
        plots = write_plots(folder, setting, looks, windows[-1], wanted)
        compared.append(ComparedSetting(setting, windows, reference, wanted, note, plots))

    # Write the tables.
    write_markdown(page, compared, left_out)
    write_html(page)
    tables = write_csv_files(output, compared)
    remove_plots(earlier.difference(*(each.plots for each in compared)), output)

    # Print what matters most.
    for each in compared:
        _print_setting(console, each)
    for run in left_out:
        text = f"[bold yellow]left out, {run.status}:[/] {escape(f'{run.path} ({run.reason})')}"
        console.print(text, highlight=False, soft_wrap=True)
    drawn = sum(len(each.plots) for each in compared)
    lines = [f"Tables and {drawn} plots: {page}", *map(str, (page.with_suffix(".html"), *tables))]
    if tensorboard is not None:
        write_events(tensorboard, settings)
        lines.append(f"TensorBoard events of {len(runs) - len(repeated)} runs: {tensorboard}")
    console.print(escape("\n".join(lines)), highlight=False, soft_wrap=True)
    return page


def _nothing(paths: Sequence[Path], only: Sequence[str] | None, left_out: list[LeftOutRun]) -> str:
    where = ", ".join(map(str, paths))
    if left_out:
        listed = "\n".join(f"  {run.path}: {run.status} ({run.reason})" for run in left_out)
        return f"no run in {where} has finished, so there is nothing to compare\n{listed}"
    if only is not None:
        return f"there is no run with a name like {' or '.join(only)} in {where}: check --only"
    return f"there is no run in {where}: give folders that hold metrics.jsonl, at any depth"


def _common_parent(paths: Sequence[Path]) -> Path:
    folders = [path if path.is_dir() else path.parent for path in map(Path.resolve, paths)]
    common = Path(os.path.commonpath(folders))
    return common.parent if RunFolder(common).metrics_file.exists() else common


def _print_setting(console: Console, each: ComparedSetting) -> None:
    """Print the figures that papers put into their main tables; the page has all."""
    setting, window = each.setting, each.windows[-1]
    shown = [figure for figure in setting.figures if figure.printed]
    content = figures_table(setting, shown, window)
    headings = [*content.columns[:2], *(figure_heading(each, of_whom=True) for each in shown)]
    rows = [
        [Text(cell, "bold" if (row, column) in content.best else "") for column, cell in cells]
        for row, cells in enumerate(map(enumerate, content.rows))
    ]
    if math.isfinite(each.target):
        headings.append(f"rounds to {percent(each.target)}")
        reached = target_table(setting, each.target).rows
        for row, (_, reached_by, mean, _) in zip(rows, reached, strict=True):
            row.append(Text(f"{reached_by} seeds" if mean == UNKNOWN else mean))
    chance = f"; chance: {percent(setting.chance)}" if setting.classes else ""
    seeds = {len(method.runs) for method in setting.methods}
    alike = f", {max(seeds)} seeds" if len(seeds) == 1 and setting.has_seeds else ""
    if alike:
        del headings[1]
        rows = [[name, *others] for name, _, *others in rows]
    title = f"{escape(setting.label)}\n{window.label}{alike}, %{chance}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading, cells in zip(headings, zip(*rows, strict=True), strict=True):
        # Where a terminal is narrow, lines break between words: half a figure would be another.
        words = " ".join((heading, *(cell.plain for cell in cells))).split()
        width = max(map(len, words))
        side: Literal["left", "right"] = "right" if table.columns else "left"
        table.add_column(escape(heading), justify=side, min_width=width, overflow="fold")
    # The reference comes first.
    ordered = zip(setting.methods, rows, strict=True)
    for _, row in sorted(ordered, key=lambda own: own[0] is not each.reference):
        table.add_row(*row)
    console.print(table)


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
