"""What the command checks of all its runs before the first of them starts.

A sweep may take days: that the last of its runs cannot start is said when it is typed. Hydra calls
this back before it makes a folder (``hydra.callbacks`` in ``conf/config.yaml``).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import track

from fedpw_flwr.lab.config.configuration import (
    ConfigurationError,
    checked,
    what_hydra_said,
    with_absolute_folders,
)
from fedpw_flwr.lab.config.early_checks import check_early
from fedpw_flwr.lab.simulation.terminal import say
from fedpw_flwr.lab.sweep import Sweep

_MOST_NAMED = 3


class CheckedJobs(Callback):
    """Ends the command, with status 1, where its folder or one of a sweep's runs cannot be used."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the folder of a single run: the run is checked where it starts."""
        HydraConfig.instance().set_config(config)
        _check_folder("hydra.run.dir", config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check every run of a sweep that is not done yet, then the sweep's folder."""
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        given = config.hydra.sweeper.get("params") or {}
        # As they were typed: what they refer to may differ from run to run.
        typed = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        assert isinstance(typed, list)
        overrides = [*(f"{key}={value}" for key, value in given.items()), *map(str, typed)]
        loader = hydra.config_loader
        try:
            # The loader knows the choices of groups, for ``strategy=glob(*)``.
            parsed = OverridesParser.create(loader).parse_overrides(overrides)
            (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        except HydraException:
            # Hydra says what is wrong with them; another sweeper chooses runs as it goes.
            return
        found: dict[str, list[str]] = {}
        errors = Console(stderr=True)
        quiet = not errors.is_terminal
        seen = track(jobs, "checking the runs", console=errors, transient=True, disable=quiet)
        for number, job in enumerate(seen):
            wrong = _what_is_wrong(loader, config, job, number)
            if wrong is not None:
                found.setdefault(wrong, []).append(shlex.join(job))
        for wrong, where in found.items():
            more = len(where) - _MOST_NAMED
            others = f" (and {more} more)" if more > 0 else ""
            say(f"{'; '.join(where[:_MOST_NAMED])}{others}: {wrong}")
        if found:
            say("no run was started")
            sys.exit(1)
        # Hydra would compose all of them again here, which takes as long, without a word.
        BasicSweeper.validate_batch_is_legal = lambda self, batch: None  # type: ignore[method-assign]
        _check_folder("hydra.sweep.dir", config.hydra.sweep.dir)


def _what_is_wrong(
    loader: ConfigLoader, sweep: DictConfig, overrides: Sequence[str], number: int
) -> str | None:
    """Return why run `number` of a sweep cannot start; None where it can, or is done already."""
    try:
        configuration = loader.load_sweep_config(sweep, list(overrides))
        # What refers to hydra's own settings finds this run's.
        with open_dict(configuration):
            configuration.hydra.job.id = configuration.hydra.job.num = number
        HydraConfig.instance().set_config(configuration)
        with read_write(configuration), open_dict(configuration):
            del configuration["hydra"]
        absolute = with_absolute_folders(checked(configuration), Path.cwd())
    except ConfigurationError as error:
        return str(error)
    except (HydraException, OmegaConfBaseException) as error:
        return what_hydra_said(error)
    try:
        check_early(absolute)
    except ConfigurationError as error:
        # Its data, or the GPU it had, need not be there any more.
        done = Sweep(Path(sweep.hydra.sweep.dir).resolve(), Console()).finished(absolute)
        return str(error) if done is None else None
    return None


def _check_folder(key: str, folder: str) -> None:
    """End the command where a folder cannot be made, or nothing be written into it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        say(f"no run can be kept in the folder {folder} ({reason}): give another with {key}=...")
        sys.exit(1)
