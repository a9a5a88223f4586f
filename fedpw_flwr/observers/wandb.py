"""Weights & Biases, offline: nothing is sent before ``wandb sync FOLDER/wandb/offline-run-*``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fedpw_flwr.observers.tracker import Tracker


class WandbTracker(Tracker):
    """Writes offline runs of W&B into the run's folder; online with ``WANDB_MODE=online``.

    A run that goes on is a further offline run with the same id: synced in their order, with
    ``wandb sync``, they are one.
    """

    library = "wandb"

    def open(self, known: str | None, after: int | None) -> str:
        """Begin a run with its settings, or go on with a known one."""
        import wandb

        self._run: Any = wandb.init(
            mode=os.environ.get("WANDB_MODE", "offline"),
            dir=str(self.folder),
            project=self.project,
            name=self.folder.name,
            config=dict(self.settings),
            id=known,
            resume=None if known is None else "allow",
            # Beside other runs of this process, and without a word of its own.
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        return str(self._run.id)

    def write(self, server_round: int, numbers: Mapping[str, float]) -> None:
        """Write a row of history, the round as its step."""
        self._run.log(dict(numbers), step=server_round)

    def close(self, stopped: str | None, error: BaseException | None) -> None:
        """End the run, and say whether and why it was stopped."""
        self._run.summary["stopped"] = stopped or "no"
        self._run.finish(exit_code=0 if error is None else 1)
