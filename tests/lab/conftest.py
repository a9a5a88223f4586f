"""A Flower app that needs no PyTorch, to run in earnest."""

from pathlib import Path

import pytest

SERVER_APP = """
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Noting(FedAvg):
    replies = []

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        metrics = [reply.content["metrics"] for reply in replies if reply.has_content()]
        self.replies += [dict(one) for one in metrics]
        return super().aggregate_train(server_round, replies)


@app.main()
def main(grid: Grid, context: Context) -> None:
    folder = Path(context.run_config["output-folder"])
    overrides = context.run_config["overrides"]
    (folder / "overrides.txt").write_text(overrides, encoding="utf-8")
    if overrides == "raise":
        raise ValueError("rounds=0 makes no sense:\\n  choose at least 1")

    def note(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        figures = {"a": 0.5, "b": 0.7}
        record = {"round": server_round, "seconds": 0.1, "accuracy": figures, "loss": figures}
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\\n")
        return MetricRecord({"accuracy": 0.6})

    strategy = Noting(fraction_evaluate=0.0, min_train_nodes=3, min_available_nodes=3)
    strategy.replies = []
    arrays = ArrayRecord({"w": Array(np.zeros(3, dtype=np.float32))})

    def play(rounds: int) -> None:
        timeout = 5.0 if overrides == "hangs" else 600.0
        strategy.start(
            grid=grid, initial_arrays=arrays, num_rounds=rounds, evaluate_fn=note, timeout=timeout
        )
        (folder / "replies.json").write_text(json.dumps(strategy.replies))

    play(2)
    if overrides == "wait":
        (folder / "waits").touch()
        time.sleep(600)
    if overrides == "go on":
        play(100_000)
"""

CLIENT_APP = """
import os
import time

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    given = [name[11:] for name in os.environ if name.startswith("FEDPW_TEST_")]
    print("client has", given, "is", os.getpid(), flush=True)
    seen = context.state.setdefault("rounds", ConfigRecord({"seen": 0}))
    seen["seen"] += 1
    partition, overrides = context.node_config["partition-id"], context.run_config["overrides"]
    if partition == 1 and message.content["config"]["server-round"] == 1:
        if overrides == "dies":
            os._exit(1)
        if overrides == "hangs":
            time.sleep(600)
        if overrides == "raises":
            raise OSError("the disk is full")
        if overrides == "no message":
            return lambda: None
    metrics = {"train_loss": 1.0, "num-examples": 1, "partition": partition, "seen": seen["seen"]}
    content = {"arrays": message.content["arrays"], "metrics": MetricRecord(metrics)}
    return Message(content=RecordDict(content), reply_to=message)
"""


@pytest.fixture(scope="module")
def tiny_app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the app; its behaviour is chosen by the run config's `overrides`."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny_app").mkdir(parents=True)
    (folder / "tiny_app" / "__init__.py").write_text("")
    (folder / "tiny_app" / "server_app.py").write_text(SERVER_APP)
    (folder / "tiny_app" / "client_app.py").write_text(CLIENT_APP)
    return folder
