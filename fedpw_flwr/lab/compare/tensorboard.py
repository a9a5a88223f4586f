"""Runs as TensorBoard event files, one folder a run, for those who look at curves there.

    fedpw-compare outputs --tensorboard events
    tensorboard --logdir events

The "relative" time axis shows the run's own seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedpw_flwr.lab.compare.figures import CLIENT_WEIGHT, DOMAIN_WEIGHT, history_of
from fedpw_flwr.lab.compare.runs import FinishedRun
from fedpw_flwr.lab.compare.settings import Setting
from fedpw_flwr.lab.runs.records import RoundRecord


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


def scalars_of_round(record: RoundRecord) -> Iterator[tuple[str, float]]:
    """Yield tag and value of one round's figures; those that are not finite are left out.

    Tags are ``accuracy/DOMAIN``, ``domains/mean``, ``domains/std``, ``domains/worst`` and
    ``clients/...`` in percent, points or degrees; ``loss/DOMAIN``, ``train_loss``; and
    ``weight/client_3``, the client's share of the round's aggregation weights.
    """
    scalars = {
        key.replace(".", "/", 1): value
        for key, value in history_of([record]).iloc[0].items()
        if not key.startswith((DOMAIN_WEIGHT, CLIENT_WEIGHT))
    }
    scalars |= {f"loss/{domain}": value for domain, value in record.loss.items()}
    if record.train_loss is not None:
        scalars["train_loss"] = record.train_loss
    if record.clients is not None:
        shares = zip(record.clients.id, record.clients.weight_shares, strict=True)
        scalars |= {f"weight/client_{client}": share for client, share in shares}
    return ((tag, value) for tag, value in scalars.items() if math.isfinite(value))


def _write_run(folder: Path, run: FinishedRun) -> None:
    # Importing PyTorch takes seconds, which only those who ask for events should wait for.
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    untyped: Any = SummaryWriter
    with untyped(log_dir=str(folder)) as writer:
        time = run.folder.finished_at - run.summary.seconds
        for record in run.folder.read_rounds():
            time += record.seconds if math.isfinite(record.seconds) else 0.0
            for tag, value in scalars_of_round(record):
                writer.add_scalar(tag, value, global_step=record.round, walltime=time)
