"""MLflow, on this machine or wherever ``MLFLOW_TRACKING_URI`` says.

    mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db

The command that shows it comes with ``pip install mlflow``; to write, mlflow-skinny is enough.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from filelock import FileLock

from fedpw_flwr.observers.tracker import Tracker
from fedpw_flwr.rounds.observers import was_interrupted

_METRICS_AT_ONCE = 1000
"""What MLflow takes in one call."""


class MLflowTracker(Tracker):
    """Writes to the MLflow store of ``MLFLOW_TRACKING_URI``.

    Where that is not set, it is ``mlflow.db`` beside the run's folder, where runs are side by side.
    """

    library = "mlflow"

    def open(self, known: str | None, after: int | None) -> str:
        """Begin a run with its settings, or go on with a known one."""
        from mlflow import MlflowClient

        store = self.folder.parent / "mlflow.db"
        # Tables and experiment are made once, by whichever of the runs is first.
        with FileLock(store.with_name(".mlflow.lock")):
            uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
            self._client: Any = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(self.project)
            new = None if found else self._client.create_experiment(self.project)
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            self._run = known
            return known
        number = found.experiment_id if found else new
        self._run = str(self._client.create_run(number, run_name=self.folder.name).info.run_id)
        for name, value in _flat(self.settings):
            self._client.log_param(self._run, name, value)
        return self._run

    def write(self, server_round: int, numbers: Mapping[str, float]) -> None:
        """Write metrics, the round as their step."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(_allowed(name), number, now, server_round) for name, number in numbers.items()
        ]
        for start in range(0, len(metrics), _METRICS_AT_ONCE):
            self._client.log_batch(self._run, metrics=metrics[start : start + _METRICS_AT_ONCE])

    def close(self, stopped: str | None, error: BaseException | None) -> None:
        """End the run, and say whether and why it was stopped."""
        self._client.set_tag(self._run, "stopped", stopped or "no")
        failed = "KILLED" if was_interrupted(error) else "FAILED"
        self._client.set_terminated(self._run, "FINISHED" if error is None else failed)


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield _allowed(f"{above}{name}"), value


def _allowed(name: str) -> str:
    return re.sub(r"[^\w.\- :/]", "_", name)
