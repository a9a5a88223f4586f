"""The command's own experiment with a ClientApp of a test's, on real workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpw_flwr.lab.config.configuration import compose_configuration, runtime_settings
from fedpw_flwr.lab.simulation.run import App, RunOutcome, run_app
from fedpw_flwr.lab.simulation.runs import Runs


def run_with_clients(
    module: str, num_clients: int, overrides: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> RunOutcome:
    """Run into `folder`/run with the clients of a module that lies in `folder`."""
    monkeypatch.syspath_prepend(str(folder))
    run_config = {
        "config-name": "config",
        "overrides": overrides,
        "output-folder": str(folder / "run"),
        "resume": False,
    }
    app = App("fedpw_flwr.lab.app.server_app:app", f"{module}:app", num_clients, run_config)
    runtime = runtime_settings(compose_configuration("config", overrides))
    with Runs() as runs, runs.workers(runtime, num_clients, [module]) as workers:
        return run_app(app, workers, folder / "run")
