"""The command `fedpw`: hydra's command line in front of one safe launch.

    fedpw rounds=10 strategy=fedavg seed=1

Whatever hydra understands works: overrides, ``--help``, ``--cfg job``, ``--config-dir`` with files
of one's own, ``-m`` for several runs one after the other (see `sweep`). The exit status is 0 only
if Flower recorded the run as completed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import sys
import time
from pathlib import Path

import hydra
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
    absolute_folders,
    changed_overrides,
    checked,
    compose_configuration,
    config_folder,
    count_clients,
    join_overrides,
    override_key,
    quoted,
    runtime_settings,
    what_hydra_said,
    with_absolute_folders,
)
from fedpw_flwr.lab.config.early_checks import check_early, warning_of_slow_arithmetic
from fedpw_flwr.lab.config.hardware import multiplies_bfloat16
from fedpw_flwr.lab.launch.launch import ClientResources, RunOutcome, launch
from fedpw_flwr.lab.launch.ray_cluster import check_cluster_answers
from fedpw_flwr.lab.launch.staging import StagingError
from fedpw_flwr.lab.launch.superlink import SuperLinkError
from fedpw_flwr.lab.launch.terminal import say, write_any_text
from fedpw_flwr.lab.runs.package_state import package_state
from fedpw_flwr.lab.runs.run_folder import COMMAND_FILE, RunFolder, RunFolderError
from fedpw_flwr.lab.sweep import Sweep, count_runs, run_name

__all__ = ["main"]


def main() -> None:
    """Run the command; exits with status 1 if the configuration or a run failed, or is missing."""
    write_any_text()
    failed = False
    sweep: Sweep | None = None

    def run(configuration: DictConfig) -> None:
        nonlocal failed, sweep
        folder = Path(HydraConfig.get().runtime.output_dir)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            if sweep is None:
                sweep = Sweep(folder.resolve(), count_runs(sys.argv[1:]), Console())
            failed |= not _run_of_sweep(sweep, configuration)
            return
        failed |= not _run(configuration, _folder(configuration))
        _remove_if_empty(folder)

    # Hydra raises then what it would otherwise print with its inner names.
    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        sys.argv[1:] = readable_words(sys.argv[1:])
        decorate = hydra.main(str(config_folder()), config_name="config", version_base="1.3")
        decorate(run)()
    except ConfigurationError as error:
        say(str(error))
        sys.exit(1)
    except (HydraException, OmegaConfBaseException) as error:
        if traceback_wanted:
            raise
        say(what_hydra_said(error))
        sys.exit(1)
    if sweep is not None:
        sweep.look_again()
        sweep.print_endings()
        _compare(sweep)
        failed |= sweep.count("run by another sweep") > 0
    if failed:
        sys.exit(1)


def _run_of_sweep(sweep: Sweep, configuration: DictConfig) -> bool:
    """Run one of a sweep's runs if it is not done yet; return whether it did not fail."""
    try:
        _check_config_sources()
        configuration = checked(configuration)
        if configuration.get("resume") is not None:
            raise ConfigurationError(
                "resume= is for one run: the same sweep, begun again, goes on by itself"
            )
        configuration = with_absolute_folders(configuration, Path(HydraConfig.get().runtime.cwd))
        sweep.announce(configuration)
    except ConfigurationError as error:
        say(str(error))
        sweep.ended(Path(" ".join(HydraConfig.get().overrides.task)), "failed")
        return False
    before = sweep.finished(configuration)
    if before is not None:
        said = escape(f"done before: {before}{_made_by(before)}")
        sweep.console.print(said, highlight=False, soft_wrap=True)
        sweep.ended(before, "done before")
        return True
    begun = time.monotonic()
    with sweep.claim(configuration) as folder:
        if folder is None:
            sweep.console.print("another process runs it at the moment", highlight=False)
            sweep.ended(sweep.folder / run_name(configuration), "run by another sweep")
            return True
        folder.unmark_failed()
        completed = _run(configuration, folder, go_on=folder.has(COMMAND_FILE))
        sweep.ended(folder.path, "done" if completed else "failed", time.monotonic() - begun)
    return completed


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


def _run(configuration: DictConfig, folder: RunFolder, *, go_on: bool = False) -> bool:
    """Launch the run that hydra composed, say how it ended, and return whether it completed."""
    try:
        outcome = _launch(configuration, folder, go_on=go_on)
    except (ConfigurationError, RunFolderError, StagingError, SuperLinkError) as error:
        say(str(error))
        _mark_failed(folder, "not-started", str(error))
        return False
    except KeyboardInterrupt:
        say("stopped; no process is left")
        sys.exit(130)
    if not outcome.completed:
        say(
            f"the run failed ({outcome.status})\n{outcome.error}\n"
            f"The whole log is in {outcome.log_file}"
        )
        _mark_failed(folder, outcome.status, outcome.error)
        return False
    _print_results(folder, outcome)
    return True


def _mark_failed(folder: RunFolder, status: str, error: str) -> None:
    """Leave in the folder of a sweep's run why it failed: nobody may have watched."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        with contextlib.suppress(OSError):
            folder.mark_failed(status, error)


def _folder(configuration: DictConfig) -> RunFolder:
    """Return the folder of the run to go on with, else the one that hydra made."""
    runtime = HydraConfig.get().runtime
    resume = configuration.get("resume")
    if resume is None:
        return RunFolder(Path(runtime.output_dir))
    return RunFolder((Path(runtime.cwd) / Path(str(resume)).expanduser()).resolve())


def _launch(configuration: DictConfig, folder: RunFolder, *, go_on: bool) -> RunOutcome:
    """Launch a run; `go_on` says that the folder holds the begun run of this configuration."""
    # Choose what to run
    hydra_config = HydraConfig.get()
    launched_from = Path(hydra_config.runtime.cwd)
    extra = _extra_config_folder(launched_from)
    config_name = str(hydra_config.job.config_name)
    overrides = list(hydra_config.overrides.task)
    resume = go_on or configuration.get("resume") is not None
    _check_config_sources()
    if resume and not go_on:
        config_name, saved = folder.read_command()
        changes = [word for word in overrides if override_key(word) != "resume"]
        overrides = changed_overrides(shlex.split(saved), changes)
        search = quoted(f"file://{extra.resolve()}") if extra is not None else ""
        configuration = compose_configuration(
            config_name, join_overrides([*overrides, f"hydra.searchpath=[{search}]"])
        )
    else:
        if not go_on:
            folder.check_unused()
        configuration = checked(configuration)

    # Check it
    absolute = with_absolute_folders(configuration, launched_from)
    check_early(absolute)
    runtime = runtime_settings(configuration)
    if runtime.ray_address is not None:
        check_cluster_answers(runtime.ray_address)
    warning = warning_of_slow_arithmetic(configuration, multiplies_bfloat16())
    if warning is not None:
        say(warning, style="bold yellow")

    # Launch it
    overrides = changed_overrides(overrides, absolute_folders(configuration, launched_from))
    joined = join_overrides(overrides)

    def check(prepared_file: Path) -> None:
        # Flower's processes start meanwhile; importing PyTorch and reading the data takes as long.
        from fedpw_flwr.lab.experiment import build_experiment, prepare_experiment

        # The strategy logs its warnings again where it runs.
        flower_log = logging.getLogger("flwr")
        flower_log.disabled = True
        try:
            experiment = build_experiment(absolute)
            experiment.check()
        finally:
            flower_log.disabled = False
        prepare_experiment(experiment, prepared_file, config_name, joined)

    return launch(
        {
            "config-name": config_name,
            "overrides": joined,
            "output-folder": str(folder.path),
            "resume": resume,
        },
        ClientResources(
            num_clients=count_clients(configuration),
            cpus_per_client=runtime.cpus_per_client,
            gpus_per_client=runtime.gpus_per_client,
            total_cpus=runtime.total_cpus,
            ray_address=runtime.ray_address,
        ),
        output_folder=folder.path,
        rounds=int(configuration.rounds),
        extra_config_folder=extra,
        check=check,
    )


def _check_config_sources() -> None:
    """Refuse configuration that only this process would see: the run composes its own copy."""
    for source in HydraConfig.get().runtime.config_sources:
        known = source.provider in ("hydra", "schema", "command-line")
        if not known and Path(str(source.path)) != config_folder():
            raise ConfigurationError(
                f"the configuration in {source.path} cannot be taken along: put files of your own "
                "into a folder laid out like conf/ and add it with --config-dir FOLDER"
            )


def _extra_config_folder(launched_from: Path) -> Path | None:
    """Return the folder given by ``--config-dir``."""
    for source in HydraConfig.get().runtime.config_sources:
        if source.provider == "command-line":
            return launched_from / str(source.path)
    return None


def _print_results(folder: RunFolder, outcome: RunOutcome) -> None:
    summary = folder.read_summary()
    table = Table(title=f"{summary.strategy}, seed {summary.seed}: test accuracy, %")
    table.add_column("domain")
    table.add_column(f"round {summary.rounds}", justify="right")
    for domain, accuracy in summary.accuracy.items():
        table.add_row(domain, f"{100 * accuracy:.1f}")
    table.add_section()
    for label, value in (
        ("mean (AVG)", summary.final.mean),
        ("spread (STD, ddof=1)", summary.final.std),
        ("worst", summary.final.worst),
    ):
        table.add_row(label, f"{100 * value:.1f}" if math.isfinite(value) else "-")
    console = Console()
    console.print(table)
    if summary.quarantined or summary.failed or summary.empty:
        console.print(
            f"[bold yellow]Left out in all rounds: {summary.quarantined} replies that could not be "
            f"used, {summary.failed} of clients that failed, {summary.empty} of clients without "
            "data.[/] flower.log says which and why.",
            soft_wrap=True,
        )
    console.print(
        f"{outcome.seconds:.0f} s. Metrics, models and plots: {escape(str(folder.path))}",
        highlight=False,
        soft_wrap=True,
    )


def _remove_if_empty(path: Path) -> None:
    """Remove the folder that hydra made for a run which left nothing, and an empty outputs/."""
    for folder in (path, path.parent):
        if folder.name != path.name and folder.name != "outputs":
            return
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
