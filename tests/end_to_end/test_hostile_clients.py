"""A federation with hostile clients, for real: it ends, it is sound, and it says who did what."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.simulations import run_with_clients

from fedpw_flwr.lab.runs.run_folder import RunFolder

pytestmark = pytest.mark.long

ROUNDS = 5
HANGS, STALE, LIES, NAN, SHAPE, RAISES, DIES = 5, 6, 7, 8, 9, 10, 11
HONEST = [0, 1, 2, 3, 4]

# The package's own ClientApp, with clients that misbehave.
HOSTILE_CLIENTS = f"""
import os
import time

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedpw_flwr.lab.app.client_app import app as honest_app

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    partition = context.node_config["partition-id"]
    server_round = message.content["config"]["server-round"]
    if partition == {RAISES}:
        raise RuntimeError("the disk of this site is full")
    if partition == {DIES} and server_round > 1:
        os._exit(1)
    reply = honest_app(message, context)
    if partition == {HANGS} and server_round == 3:
        time.sleep(HANG_SECONDS)
    if partition == {NAN}:
        change_first_tensor(reply, lambda tensor: tensor.fill_(torch.nan))
    if partition == {SHAPE}:
        change_first_tensor(reply, lambda tensor: tensor[:1])
    if partition == {LIES}:
        reply.content["metrics"]["train_loss"] = 1e6
    if partition == {STALE}:
        now = dict(reply.content)
        if server_round > 2:
            reply.content = RecordDict(dict(context.state))
        for name, record in now.items():
            context.state[name] = record
    return reply


@app.query("fedpw_identity")
def identify(message: Message, context: Context) -> Message:
    return honest_app(message, context)


def change_first_tensor(reply, change):
    arrays = reply.content["arrays"].to_torch_state_dict()
    name = next(iter(arrays))
    arrays[name] = change(arrays[name])
    reply.content["arrays"] = ArrayRecord(arrays)
"""

ROUND_TIMEOUT = 60


def test_run_ends_with_a_sound_model_and_names_everyone_who_misbehaved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = HOSTILE_CLIENTS.replace("HANG_SECONDS", str(ROUND_TIMEOUT + 5))
    (tmp_path / "hostile_clients.py").write_text(clients)
    words = (
        f"rounds={ROUNDS} model=cnn model.width=8 client.epochs=1 partition=by_domain "
        "partition.clients_per_domain=3 partition.train_per_client=32 "
        f"runtime.round_timeout={ROUND_TIMEOUT}"
    )

    outcome = run_with_clients("hostile_clients", 12, words, tmp_path, monkeypatch)

    assert outcome.completed, outcome.error
    folder = RunFolder(tmp_path / "run")
    records = folder.read_rounds()
    assert [record.round for record in records] == list(range(ROUNDS + 1))
    for tensor in load_file(tmp_path / "run" / "model.safetensors").values():
        assert torch.isfinite(tensor).all()

    log = outcome.log_file.read_text()
    for server_round, record in enumerate(records[1:], start=1):
        assert record.clients is not None
        taken = set(record.clients.id)
        assert set(HONEST) <= taken
        assert not {NAN, SHAPE, RAISES} & taken
        assert (STALE in taken) == (server_round <= 2)
        assert (HANGS in taken) == (server_round != 3)
        assert (DIES in taken) == (server_round == 1)
        assert record.quarantined == 2 + (server_round > 2)
        assert record.failed == 1 + (server_round > 1) + (server_round == 3)
        bound = 3 / len(taken) + 1e-12
        assert max(record.clients.weight) <= bound
        assert_named(log, server_round, NAN, "not finite")
        assert_named(log, server_round, SHAPE, "has the shape")
        assert_named(log, server_round, LIES, "reports the loss 1e\\+06")
    for server_round in range(3, ROUNDS + 1):
        assert_named(log, server_round, STALE, "quarantined: it (masked|rescaled) with")
    assert_named(log, 3, HANGS, "failed: .*it had not answered in time")
    # In the first round nothing is known of it but its node: it never answered.
    for server_round in range(2, ROUNDS + 1):
        assert_named(log, server_round, DIES, "failed: .*actor died")
        assert_named(log, server_round, RAISES, "failed: .*the disk of this site is full")


def assert_named(log: str, server_round: int, client: int, reason: str) -> None:
    """There is an entry with the round, the stable identity and the reason."""
    entries = re.split(r"\n(?=[A-Z]+ +:)", log)
    said = rf"round {server_round}, client {client}\b.*{reason}"
    assert any(re.search(said, entry, re.DOTALL) for entry in entries), f"no entry says: {said}"
