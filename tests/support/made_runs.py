"""Finished runs as `fedpw-compare` reads them, made of records without any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedpw_flwr.lab.compare.figures import history_of
from fedpw_flwr.lab.compare.runs import FinishedRun
from fedpw_flwr.lab.config.configuration import run_fingerprint
from fedpw_flwr.lab.runs.holdings import Holdings
from fedpw_flwr.lab.runs.packed_runs import PackedRun
from fedpw_flwr.lab.runs.records import RoundRecord, RunSummary


def made_run(
    records: Sequence[RoundRecord],
    configuration: Mapping[str, Any] | None = None,
    *,
    strategy: str = "fedavg",
    seed: int = 0,
    name: str = "",
    finished_at: float = 0.0,
    data_digest: str | None = None,
    holdings: Holdings | None = None,
) -> FinishedRun:
    """A finished run of these rounds, whose configuration is as given."""
    summary = RunSummary.of_run(
        records, config_text="", strategy=strategy, seed=seed, data_digest=data_digest
    )
    return FinishedRun(
        folder=PackedRun(Path(f"/runs/{name or strategy}_{seed}"), {}, finished_at),
        fingerprint=run_fingerprint(OmegaConf.create(dict(configuration or {}))),
        summary=summary,
        history=history_of(records),
        rounds=summary.rounds,
        holdings=holdings,
    )
