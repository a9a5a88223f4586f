"""Runs as TensorBoard event files, one folder a run, for those who look at curves there.

    fedpw-compare outputs --tensorboard events
    tensorboard --logdir events

The "relative" time axis shows the run's own seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedpw_flwr.lab.compare.runs import FinishedRun
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.runs.records import RoundRecord
from fedpw_flwr.rounds.observers import numbers_of


def write_events(folder: Path, settings: Sequence[Setting]) -> None:
    """Write the rounds of every run as scalars.

    Each run has a folder, in one of its setting where there are several. Event files that are
    there already are replaced: TensorBoard would draw both.
    """
    for setting in settings:
        parent = folder / setting.slug if len(settings) > 1 else folder
        for method in setting.methods:
            name = re.sub(r"[^A-Za-z0-9._=-]+", "_", method.label)
            for seed, run in method.runs.items():
                _write_run(parent / f"{name}_seed{seed}", run)


def scalars_of_round(record: RoundRecord) -> dict[str, float]:
    """Return tag and value of one round's figures, where finite, as a tracker was told them live.

    They are those of the test, ``train/train_loss``, and ``weight/client_3``, the client's share of
    the round's aggregation weights.
    """
    train: dict[str, Any] = {} if record.train_loss is None else {"train_loss": record.train_loss}
    if record.clients is not None:
        train |= {"client-id": record.clients.id, "client-weight": record.clients.weight_shares}
    return numbers_of(train, None, record.figures())


def _write_run(folder: Path, run: FinishedRun) -> None:
    # Importing it takes seconds, which only those who ask for events should wait for.
    from fedpw_flwr.observers.tensorboard import TensorBoardTracker

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    tracker = TensorBoardTracker(folder)
    tracker.open(None, None)
    time = run.folder.finished_at - run.summary.seconds
    for record in run.folder.read_rounds():
        time += record.seconds if math.isfinite(record.seconds) else 0.0
        tracker.write(record.round, scalars_of_round(record), time)
    tracker.close(run.summary.stopped, None)
