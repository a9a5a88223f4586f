"""A federation with broken clients, for real: the run finishes, learns, and says who was broken."""

from pathlib import Path

import pytest
from support.simulations import run_with_clients

from fedpw_flwr.lab.runs.run_folder import RunFolder

pytestmark = pytest.mark.long

# The package's own ClientApp, with three clients that answer as broken ones do.
BROKEN_CLIENTS = """
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedpw_flwr.lab.app.client_app import app as honest_app

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    partition = context.node_config["partition-id"]
    if partition == 3:
        raise RuntimeError("the disk of this site is full")
    reply = honest_app(message, context)
    arrays = reply.content["arrays"].to_torch_state_dict()
    name = next(iter(arrays))
    if partition == 1:
        arrays[name].view(-1)[0] = torch.nan
    if partition == 2:
        arrays[name] = arrays[name][:1]
    reply.content["arrays"] = ArrayRecord(arrays)
    return reply
"""


def test_run_with_nan_wrong_shape_and_a_raising_client_finishes_and_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_clients.py").write_text(BROKEN_CLIENTS)
    words = "rounds=3 model=cnn"
    outcome = run_with_clients("broken_clients", 8, words, tmp_path, monkeypatch)

    assert outcome.completed, outcome.error
    records = RunFolder(tmp_path / "run").read_rounds()
    assert [record.quarantined for record in records[1:]] == [2, 2, 2]
    assert [record.failed for record in records[1:]] == [1, 1, 1]
    for record in records[1:]:
        assert record.clients is not None
        assert record.clients.id == [0, 4, 5, 6, 7]
    log = outcome.log_file.read_text()
    assert "client 1 " in log
    assert "not finite" in log
    assert "client 2 " in log
    assert "has the shape" in log
    assert "the disk of this site is full" in log
