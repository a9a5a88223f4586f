"""TensorBoard, while a run goes on: ``tensorboard --logdir FOLDER``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedpw_flwr.observers.tracker import Tracker


class TensorBoardTracker(Tracker):
    """Writes TensorBoard's event files into the run's folder."""

    library = "tensorboard"

    def open(self, known: str | None, after: int | None) -> str:
        """Write a new event file; what it has of rounds after a known run's is drawn anew."""
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter
        step = None if known is None or after is None else after + 1
        self._writer = writer(str(self.folder), purge_step=step)
        return self.folder.name

    def write(
        self, server_round: int, numbers: Mapping[str, float], time: float | None = None
    ) -> None:
        """Write scalars, for TensorBoard to see at once; `time` in seconds since 1970, or now."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, server_round, walltime=time)
        self._writer.flush()

    def close(self, stopped: str | None, error: BaseException | None) -> None:
        """Close the file, with the reason where the run was stopped."""
        if stopped is not None:
            self._writer.add_text("stopped", stopped)
        self._writer.close()
