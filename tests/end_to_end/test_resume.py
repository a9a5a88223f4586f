"""A run that is killed at random moments ends with the bits of one that never was."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

COMMAND = Path(sys.executable).with_name("fedpw")
KILLS = int(os.environ.get("FEDPW_TEST_KILLS", "3"))
RUN = (
    "strategy=fedpw",
    "dataset.domains=[scans,blurred]",
    "model.width=2",
    "client.epochs=1",
    "partition.train_per_client=32",
    "runtime.total_cpus=2",
    "rounds=25",
    "seed=7",
)
TIMINGS = ("seconds", "profile")


def start(*words: str, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [COMMAND, *words],
            cwd=folder,
            env=os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def kill_everything(command: subprocess.Popen[bytes]) -> None:
    """Kill -9 the command and every process that descends from it, all at once."""
    tree = psutil.Process(command.pid).children(recursive=True)
    for process in [psutil.Process(command.pid), *tree]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    command.wait()
    psutil.wait_procs(tree, timeout=20)


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    """The rounds in metrics.jsonl, without what the clock said."""
    rounds = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        rounds.append({key: value for key, value in record.items() if key not in TIMINGS})
    return rounds


def wait_for_rounds(folder: Path, number: int, command: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    metrics = folder / "metrics.jsonl"
    while time.monotonic() < deadline and command.poll() is None:
        if metrics.is_file() and metrics.read_bytes().count(b"\n") >= number:
            return
        time.sleep(0.05)
    pytest.fail(
        f"{number} rounds did not come: {(folder.parent / 'output.txt').read_text()[-3000:]}"
    )


@pytest.mark.long
def test_a_run_killed_at_random_moments_ends_bit_identical(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(*RUN, f"hydra.run.dir={whole}", folder=tmp_path).wait(600) == 0

    generator = random.Random(0)
    words: tuple[str, ...] = (*RUN, f"hydra.run.dir={killed}")
    recorded = 0
    for number in range(KILLS):
        command = start(*words, folder=tmp_path)
        if number % 3 == 2:
            # While it starts, or goes on: Ray, reading the checkpoint.
            time.sleep(generator.uniform(1.0, 8.0))
        else:
            # In the rounds after the next one: training, aggregating, evaluating, saving.
            wait_for_rounds(killed, recorded + 1, command)
            time.sleep(generator.uniform(0.0, 1.5))
        assert command.poll() is None, "the run was over before it could be killed"
        kill_everything(command)
        recorded = len(rounds_of(killed))
        words = (f"resume={killed}",)
    assert start(*words, folder=tmp_path).wait(600) == 0

    expected, found = (
        load_file(whole / "model.safetensors"),
        load_file(killed / "model.safetensors"),
    )
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.equal(found[name]), name
    assert rounds_of(killed) == rounds_of(whole)
    assert [record["round"] for record in rounds_of(killed)] == list(range(26))
    best = "model_best.safetensors"
    assert (killed / best).read_bytes() == (whole / best).read_bytes()
