"""A Flower app that needs no PyTorch, to launch in earnest."""

from pathlib import Path

import pytest

PYPROJECT = """
[project]
name = "tiny"
version = "1.0.0"
description = "A tiny app"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "test"
[tool.flwr.app.components]
serverapp = "tiny_app.server_app:app"
clientapp = "tiny_app.client_app:app"
[tool.flwr.app.config]
overrides = ""
output-folder = ""
"""

SERVER_APP = """
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    folder = Path(context.run_config["output-folder"])
    overrides = context.run_config["overrides"]
    (folder / "overrides.txt").write_text(overrides, encoding="utf-8")
    if overrides == "raise":
        raise ValueError("rounds=0 makes no sense:\\n  choose at least 1")
    if overrides == "wait":
        time.sleep(600)

    def note(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        figures = {"a": 0.5, "b": 0.7}
        record = {"round": server_round, "seconds": 0.1, "accuracy": figures, "loss": figures}
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\\n")
        return MetricRecord({"accuracy": 0.6})

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    arrays = ArrayRecord({"w": Array(np.zeros(3, dtype=np.float32))})
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=2, evaluate_fn=note)
"""

CLIENT_APP = """
import os

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    print("client in", os.getcwd(), flush=True)
    metrics = MetricRecord({"train_loss": 1.0, "num-examples": 1})
    content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
    return Message(content=content, reply_to=message)
"""


@pytest.fixture
def tiny_app(tmp_path: Path) -> Path:
    """Write the app; its behaviour is chosen by the run config's `overrides`."""
    folder = tmp_path / "tiny"
    (folder / "tiny_app").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "tiny_app" / "__init__.py").write_text("")
    (folder / "tiny_app" / "server_app.py").write_text(SERVER_APP)
    (folder / "tiny_app" / "client_app.py").write_text(CLIENT_APP)
    return folder
