"""Runs as `fedpw-compare` reads them, in memory or in folders, made without any training."""

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
from fedpw_flwr.lab.runs.records import ClientFigures, RoundRecord, RunSummary
from fedpw_flwr.lab.runs.run_folder import RunFolder


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


def write_run(
    path: Path,
    strategy: str = "fedavg",
    seed: int = 0,
    percent: float = 70.0,
    *,
    domains: Sequence[str] = ("mnist", "svhn"),
    tested_clients: bool = False,
    finished: bool = True,
    strategy_keys: Mapping[str, float] | None = None,
    **recorded: str,
) -> RunFolder:
    """Write a run of three rounds as the server writes one; the last domain is 20 points worse."""
    configuration = {
        "dataset": {"_target_": "some.archives", "folder": "/data", "domains": list(domains)},
        "model": {"_target_": "some.ResNet10", "width": 16},
        "strategy": {"name": strategy, **(strategy_keys or {})},
        "seed": seed,
        "rounds": 3,
    }
    text = OmegaConf.to_yaml(OmegaConf.create(configuration))
    folder = RunFolder(path)
    folder.start(text)
    records = []
    for number in range(4):
        level = (percent if number == 3 else 10 + number * percent / 4) / 100
        accuracy, loss = dict.fromkeys(domains, level), dict.fromkeys(domains, 1.5)
        if len(domains) > 1 and number == 3:
            accuracy[domains[-1]] -= 0.2
        trained = ClientFigures([0, 1], [domains[0], domains[-1]], [0.06, 0.04])
        told: dict[str, Any] = {"clients": trained} if number else {}
        told |= {"client_accuracy": [level, level / 2]} if tested_clients else {}
        records.append(RoundRecord(number, 2.0, accuracy, loss, train_loss=1.0, **told))
        folder.append_round(records[-1])
    if finished:
        summary = RunSummary.of_run(
            records, config_text=text, strategy=strategy, seed=seed, **recorded
        )
        folder.write_summary(summary)
    return folder
