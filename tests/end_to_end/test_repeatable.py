"""The same configuration and seed give the same bits, however many workers Ray has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMAND = Path(sys.executable).with_name("fedpw")
RUN = (
    "strategy=fedpw",
    # Half of the clients a round: who they are is drawn by chance.
    "strategy.fraction_train=0.5",
    "dataset.domains=[scans,blurred,textured]",
    "model.width=2",
    "client.epochs=1",
    "partition.train_per_client=32",
    "rounds=8",
    "seed=3",
)
TIMINGS = ("seconds", "profile")


def run(folder: Path, *words: str) -> list[dict[str, Any]]:
    """Run the command, and return its rounds without what the clock said."""
    done = subprocess.run(
        [COMMAND, *RUN, *words, f"hydra.run.dir={folder}"],
        cwd=folder.parent,
        env=os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        rounds.append({key: value for key, value in record.items() if key not in TIMINGS})
    return rounds


@pytest.mark.long
def test_one_worker_and_two_give_the_same_bits(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    rounds = run(one, "runtime.total_cpus=1")
    assert run(two, "runtime.total_cpus=2") == rounds
    for model in ("model.safetensors", "model_best.safetensors"):
        assert (one / model).read_bytes() == (two / model).read_bytes()

    trained = [tuple(record["clients"]["id"]) for record in rounds[1:]]
    assert {len(clients) for clients in trained} == {3}
    assert len(set(trained)) > 1, "the same clients were drawn in every round"
