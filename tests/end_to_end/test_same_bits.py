"""The same bits, however often a run is killed and however many workers Ray has."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from support.commands import (
    COMMANDS,
    QUIET,
    assert_same_model,
    kill_at_once,
    rounds_of,
    typed,
    wait_for_rounds,
)

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("FEDPW_TEST_KILLS", "3"))
RUN = ("strategy=fedpw", "model.width=2", "client.epochs=1", "partition.train_per_client=32")
KILLED = (*RUN, "dataset.domains=[scans,blurred]", "runtime.total_cpus=2", "rounds=25", "seed=7")
# Half of the clients a round: who they are is drawn by chance.
DRAWN = (
    *(*RUN, "dataset.domains=[scans,blurred,textured]", "strategy.fraction_train=0.5"),
    *("rounds=8", "seed=3"),
)


def start(*words: str, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [COMMANDS / "fedpw", *words],
            cwd=folder,
            env=os.environ | QUIET,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def test_a_run_killed_at_random_moments_ends_bit_identical(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(*KILLED, f"hydra.run.dir={whole}", folder=tmp_path).wait(600) == 0

    generator = random.Random(0)
    words: tuple[str, ...] = (*KILLED, f"hydra.run.dir={killed}")
    recorded = 0
    for number in range(KILLS):
        command = start(*words, folder=tmp_path)
        if number % 3 == 2:
            # While it starts, or goes on: Ray, reading the checkpoint.
            time.sleep(generator.uniform(1.0, 8.0))
        else:
            # In the rounds after the next one: training, aggregating, evaluating, saving.
            wait_for_rounds(killed, recorded, command)
            time.sleep(generator.uniform(0.0, 1.5))
        assert command.poll() is None, "the run was over before it could be killed"
        kill_at_once(command)
        recorded = len(rounds_of(killed))
        words = (f"resume={killed}",)
    assert start(*words, folder=tmp_path).wait(600) == 0

    assert_same_model(whole, killed)
    assert rounds_of(killed) == rounds_of(whole)
    assert [record["round"] for record in rounds_of(killed)] == list(range(26))
    best = "model_best.safetensors"
    assert (killed / best).read_bytes() == (whole / best).read_bytes()


def test_one_worker_and_two_give_the_same_bits(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for cpus, folder in enumerate((one, two), start=1):
        words = (*DRAWN, f"runtime.total_cpus={cpus}", f"hydra.run.dir={folder}")
        typed("fedpw", *words, folder=tmp_path, timeout=600)
    rounds = rounds_of(one)
    assert rounds_of(two) == rounds
    for model in ("model.safetensors", "model_best.safetensors"):
        assert (one / model).read_bytes() == (two / model).read_bytes()

    trained = [tuple(record["clients"]["id"]) for record in rounds[1:]]
    assert {len(clients) for clients in trained} == {3}
    assert len(set(trained)) > 1, "the same clients were drawn in every round"
