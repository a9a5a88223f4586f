"""The folder that runs go to, tried before anything is composed or imported for them.

Hydra calls this back (``hydra.callbacks`` in ``conf/config.yaml``).
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fedpw_flwr.lab.simulation.terminal import say


class OutputFolder(Callback):
    """Ends the command, with status 1, where its folder cannot be made or written into."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Try the folder of a single run."""
        HydraConfig.instance().set_config(config)
        _try("hydra.run.dir", config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Try the folder of a sweep."""
        HydraConfig.instance().set_config(config)
        _try("hydra.sweep.dir", config.hydra.sweep.dir)


def _try(key: str, folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        say(f"no run can be kept in the folder {folder} ({reason}): give another with {key}=...")
        sys.exit(1)
