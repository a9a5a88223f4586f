"""The command `fedpw`: hydra's command line in front of the runs.

    fedpw rounds=10 strategy=fedavg seed=1

Whatever hydra understands works: overrides, ``--help``, ``--cfg job``, ``--config-dir`` with files
of one's own, ``-m`` for several runs (see `sweep`). The exit status is 0 only if all completed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedpw_flwr.lab.config.command_line import readable_words
from fedpw_flwr.lab.config.configuration import (
    ConfigurationError,
    checked,
    config_folder,
    override_key,
    what_hydra_said,
    with_absolute_folders,
    with_changes,
)
from fedpw_flwr.lab.config.early_checks import check_early, warning_of_slow_arithmetic
from fedpw_flwr.lab.job import execute, runs_at_a_time
from fedpw_flwr.lab.runs.records import package_state
from fedpw_flwr.lab.runs.run_folder import CONFIG_FILE, RunFolder, RunFolderError
from fedpw_flwr.lab.runs.written import number
from fedpw_flwr.lab.simulation.progress import Display, RunProgress
from fedpw_flwr.lab.simulation.run import RunOutcome, explained
from fedpw_flwr.lab.simulation.runs import Runs
from fedpw_flwr.lab.simulation.terminal import say, write_any_text
from fedpw_flwr.lab.simulation.workers import WorkersStopped
from fedpw_flwr.lab.sweep import Ending, Sweep, run_name

_MOST_NAMED = 3


def main() -> None:
    """Run the command; exits with status 1 if the configuration or a run failed, or is missing."""
    write_any_text()
    # Hydra raises then what it would otherwise print with its inner names.
    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        sys.argv[1:] = readable_words(sys.argv[1:])
        # Hydra composes a sweep's runs one after the other; it would compose all twice, the first
        # time without a word, and then list what the command itself says of them.
        BasicSweeper.validate_batch_is_legal = lambda self, batch: None  # type: ignore[method-assign]
        logging.getLogger("hydra").setLevel(logging.WARNING)
        decorate = hydra.main(str(config_folder()), config_name="config", version_base="1.3")
        with Display() as display, Runs() as runs:
            command = _Command(display, runs)
            try:
                decorate(command.add)()
                command.play()
            finally:
                _remove_if_empty()
    except KeyboardInterrupt:
        say("stopped; no process is left")
        sys.exit(130)
    except ConfigurationError as error:
        say(str(error))
        sys.exit(1)
    except (HydraException, OmegaConfBaseException) as error:
        if traceback_wanted:
            raise
        say(what_hydra_said(error))
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            say("no run was started")
        sys.exit(1)
    if command.failed:
        sys.exit(1)


def command() -> None:
    """Run `main`, and leave at once: freeing PyTorch's memory bit by bit takes a second or two."""
    try:
        main()
        status = 0
    except SystemExit as leaving:
        if not isinstance(leaving.code, int):
            raise
        status = leaving.code
    except BrokenPipeError:
        # Who reads along, such as `head`, has read enough.
        status = 1
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Command:
    """The runs that hydra composes, one or a sweep's, and what became of them."""

    def __init__(self, display: Display, runs: Runs) -> None:
        self.failed = False
        self._display, self._runs = display, runs
        self._waiting: list[tuple[DictConfig, Callable[[], None]]] = []
        self._refused: dict[str, list[str]] = {}
        self._sweep: Sweep | None = None

    def add(self, configuration: DictConfig) -> None:
        """Take what hydra composed, to be played with the others, and see whether it can start."""
        hydra_config, resume = HydraConfig.get(), configuration.get("resume")
        words = [str(word) for word in hydra_config.overrides.task]
        launched_from = Path(hydra_config.runtime.cwd)
        made = Path(hydra_config.runtime.output_dir)
        if hydra_config.mode == RunMode.MULTIRUN:
            self._sweep = self._sweep or Sweep(made.resolve(), self._display.console)
            self._display.overall(f"checking run {len(self._waiting) + 1}")
        sweep, folder = self._sweep, RunFolder(made)
        try:
            if resume is not None:
                if sweep is not None:
                    raise ConfigurationError(
                        "resume= is for one run: the same sweep, begun again, goes on by itself"
                    )
                folder = RunFolder((launched_from / Path(str(resume)).expanduser()).resolve())
                changes = [word for word in words if override_key(word) != "resume"]
                configuration = with_changes(folder.read_config(), changes)
            job = with_absolute_folders(checked(configuration), launched_from)
            self._check(job)
        except (ConfigurationError, RunFolderError) as error:
            self._refused.setdefault(str(error), []).append(shlex.join(words))
            return
        if sweep is None:
            run = partial(self._run_alone, job, folder, resume is not None)
        else:
            run = partial(self._turn_of, sweep, job)
        self._waiting.append((job, run))

    def _check(self, job: DictConfig) -> None:
        try:
            check_early(job)
        except ConfigurationError:
            # The data of a run that is done, or the GPU it had, need not be there any more.
            if self._sweep is None or self._sweep.finished(job) is None:
                raise

    def play(self) -> None:
        """Let the runs run, and compare those of a sweep; none of them if one cannot start."""
        if self._refused:
            self.failed = True
            self._tell_refused()
            return
        if self._sweep is not None:
            self._sweep.total = len(self._waiting)
            self._display.overall(self._sweep.standing())
        at_a_time = min((runs_at_a_time(job) for job, _ in self._waiting), default=1)
        self._runs.play((run for _, run in self._waiting), at_a_time)
        if self._sweep is not None:
            self._sweep.look_again()
            self._sweep.print_endings()
            _compare(self._sweep)
            self.failed |= self._sweep.count("failed", "run by another sweep") > 0

    def _tell_refused(self) -> None:
        for wrong, where in self._refused.items():
            more = len(where) - _MOST_NAMED
            others = f" (and {more} more)" if more > 0 else ""
            runs = "" if self._sweep is None else f"{'; '.join(where[:_MOST_NAMED])}{others}: "
            self._say(f"{runs}{wrong}")
        if self._sweep is not None:
            self._say("no run was started")

    def _run_alone(self, job: DictConfig, folder: RunFolder, resume: bool) -> None:
        self.failed |= not self._run(job, folder, "", resume)

    def _turn_of(self, sweep: Sweep, job: DictConfig) -> None:
        """Run one of a sweep's runs if it is not done yet."""
        name = run_name(job)
        try:
            self._run_of_sweep(sweep, job, name)
        except (OSError, RunFolderError) as error:
            self._say(f"{name}: {error}")
            sweep.ended(sweep.folder / name, "failed")
        self._display.overall(sweep.standing())

    def _run_of_sweep(self, sweep: Sweep, job: DictConfig, name: str) -> None:
        before = sweep.finished(job)
        if before is not None:
            self._display.print(f"done before: {before}{_made_by(before)}")
            sweep.ended(before, "done before")
            return
        begun = time.monotonic()
        with sweep.claim(job) as folder:
            if folder is None:
                self._display.print(f"{name}: another process runs it at the moment")
                sweep.ended(sweep.folder / name, "run by another sweep")
                return
            sweep.announce(name)
            folder.unmark_failed()
            completed = self._run(job, folder, name, folder.has(CONFIG_FILE))
            ending: Ending = "done" if completed else "failed"
            sweep.ended(folder.path, ending, time.monotonic() - begun)

    def _run(self, job: DictConfig, folder: RunFolder, name: str, resume: bool) -> bool:
        """Execute a run, say how it ended, and return whether it completed."""
        warning = warning_of_slow_arithmetic(job)
        if warning is not None:
            self._say(warning, "bold yellow")
        which, status, log = f"{name}: " if name else "", "not-started", ""
        try:
            with RunProgress(self._display, folder, int(job.rounds), name) as progress:
                outcome = execute(job, folder, self._runs, progress, resume)
            if outcome.completed:
                summary = folder.read_summary()
                if summary.stopped is not None:
                    self._display.print(
                        f"{which}stopped early, after round {summary.rounds}: {summary.stopped}. "
                        f"To play more rounds: fedpw resume={folder.path} stop.target=null "
                        "stop.patience=null"
                    )
                if not name:
                    _print_results(folder, outcome, self._display.console)
                return True
            status, reason = "failed", outcome.error
            log = f"\nThe whole log is in {outcome.log_file}"
        except (ConfigurationError, RunFolderError, WorkersStopped) as error:
            reason = str(error)
        except Exception as error:
            reason = explained(error)
        if self._runs.stopped:
            return False
        self._say(f"{which}the run failed\n{reason}{log}" if log else f"{which}{reason}")
        if name:
            # Nobody may have watched.
            with contextlib.suppress(OSError):
                folder.mark_failed(status, reason)
        return False

    def _say(self, text: str, style: str = "bold red") -> None:
        """Say what is wrong: above the bars where there are any, which would wipe it out."""
        say(text, style, self._display.console if self._display.bars is not None else None)


def _made_by(run: Path) -> str:
    """Tell if a run was made by another state of the package."""
    made_by, now = RunFolder(run).read_summary().package, package_state()
    if made_by in (None, now):
        return ""
    return f" (by fedpw-flwr {made_by}; this is {now}: delete the folder to run it again)"


def _compare(sweep: Sweep) -> None:
    """Put the finished runs of a sweep into a table and plots."""
    elsewhere = sweep.count("run by another sweep")
    if elsewhere:
        say(
            f"another sweep is at {elsewhere} of the runs, which are missing here: the "
            "same command, begun again when it is done, has them all",
            style="bold yellow",
        )
    if not sweep.count("done", "done before"):
        return
    # Not at the top: matplotlib and SciPy take a second.
    from fedpw_flwr.lab.compare.command import compare
    from fedpw_flwr.lab.compare.runs import ComparisonError

    try:
        compare(sweep.runs(), output=sweep.comparison, console=sweep.console)
    except (ComparisonError, RunFolderError, OSError) as error:
        say(f"the runs cannot be compared: {error}")


def _print_results(folder: RunFolder, outcome: RunOutcome, console: Console) -> None:
    summary = folder.read_summary()
    table = Table(title=f"{summary.strategy}, seed {summary.seed}: test accuracy, %")
    table.add_column("domain")
    table.add_column(f"round {summary.rounds}", justify="right")
    for domain, accuracy in summary.accuracy.items():
        table.add_row(domain, number(100 * accuracy, 1))
    table.add_section()
    for label, value in (
        ("mean (AVG)", summary.final.mean),
        ("spread (STD, ddof=1)", summary.final.std),
        ("worst", summary.final.worst),
    ):
        table.add_row(label, number(100 * value, 1))
    console.print(table)
    if summary.quarantined or summary.failed or summary.empty:
        console.print(
            f"[bold yellow]Left out in all rounds: {summary.quarantined} replies that could not be "
            f"used, {summary.failed} of clients that failed, {summary.empty} of clients without "
            "data.[/] flower.log says which and why.",
            soft_wrap=True,
        )
    console.print(
        f"{outcome.seconds:.0f} s. Report, metrics, models and plots: {escape(str(folder.path))}",
        highlight=False,
        soft_wrap=True,
    )


def _remove_if_empty() -> None:
    """Remove the folder that was made for runs which left nothing, and an empty outputs/."""
    if not HydraConfig.initialized():
        return
    made = HydraConfig.get()
    path = Path(made.sweep.dir if made.mode == RunMode.MULTIRUN else made.run.dir).resolve()
    for folder in (path, path.parent):
        if folder == Path.cwd() or (folder != path and folder.name != "outputs"):
            return
        with contextlib.suppress(OSError):
            # Hydra itself leaves a file in a sweep's.
            if [one.name for one in folder.iterdir()] == ["multirun.yaml"]:
                (folder / "multirun.yaml").unlink()
            folder.rmdir()
