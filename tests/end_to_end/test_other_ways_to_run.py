"""Short real runs of what is not the default: another strategy, a sweep, plain `flwr run`."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import COMMANDS, marked, typed, wait_until

from fedpw_flwr.lab.config.configuration import config_folder
from fedpw_flwr.lab.runs.run_folder import RunFolder

pytestmark = pytest.mark.long


def test_fedavg_weights_clients_by_their_number_of_pictures(tmp_path: Path) -> None:
    words = ("strategy=fedavg", "model=cnn", "rounds=2", "hydra.run.dir=run")
    typed("fedpw", *words, folder=tmp_path)
    folder = RunFolder(tmp_path / "run")
    clients = folder.read_rounds()[-1].clients
    assert clients is not None
    pictures = [190, 190, 150, 150, 150, 150, 100, 100]
    assert clients.weight == pytest.approx([count / sum(pictures) for count in pictures])
    assert clients.p is None
    assert folder.read_summary().strategy == "fedavg"
    assert (folder.path / "weights.png").is_file()


def test_a_run_on_one_machine_starts_behind_a_proxy_that_flower_cannot_use(
    tmp_path: Path,
) -> None:
    nowhere = {"ALL_PROXY": "socks5h://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    clients = ("partition=by_domain", "partition.clients_per_domain=1")
    words = (*clients, "partition.train_per_client=21", "model=mlp", "rounds=1")
    typed("fedpw", *words, "hydra.run.dir=run", folder=tmp_path, **nowhere)
    assert RunFolder(tmp_path / "run").read_summary().rounds == 1


SWEEP = ("fedpw", "-m", "model=cnn", "model.width=4")


def test_a_sweep_marks_what_failed_compares_the_rest_and_runs_only_what_is_missing(
    tmp_path: Path,
) -> None:
    runs = tmp_path / "multirun"
    # Only the data say that the first of them cannot run.
    words = ("partition=by_domain", "rounds=1")
    both = "partition.train_per_client=90000,21"
    first = typed(*SWEEP, both, *words, folder=tmp_path, status=1)
    assert "change partition.train_per_client" in first.stderr
    assert "run 2 of 2" in first.stdout
    (summary,) = runs.rglob("summary.json")
    assert json.loads(summary.read_text())["rounds"] == 1
    (failure,) = runs.rglob("failure.json")
    assert "partition.train_per_client" in json.loads(failure.read_text())["error"]
    assert "fedpw" in next(runs.glob("comparison-*/comparison.md")).read_text()

    # Under another name it is the same run; another seed is none of these.
    summary.parent.rename(runs / "of yesterday")
    one = "partition.train_per_client=21"
    again = typed(*SWEEP, one, "seed=0,1", *words, folder=tmp_path)
    assert f"done before: {runs / 'of yesterday'}" in " ".join(again.stdout.split())
    assert len(list(runs.rglob("summary.json"))) == 2


def test_a_killed_sweep_goes_on_with_the_runs_it_was_in(tmp_path: Path) -> None:
    words = ["strategy=fedavg,fedpw", "rounds=3"]
    with subprocess.Popen(
        [COMMANDS / SWEEP[0], *SWEEP[1:], *words],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as sweep:
        saved = "multirun/*/checkpoints/round-00000[12]"
        wait_until(lambda: list(tmp_path.glob(saved)), sweep)
        sweep.kill()
    begun = {path.parents[1].name for path in tmp_path.glob("multirun/*/checkpoints/round-*[12]")}
    typed(*SWEEP, *words, folder=tmp_path)
    rounds = {
        file.parent.name: [json.loads(line)["round"] for line in file.read_text().splitlines()]
        for file in tmp_path.glob("multirun/*/metrics.jsonl")
    }
    assert begun <= rounds.keys()
    assert list(rounds.values()) == [[0, 1, 2, 3]] * 2
    for name in begun:
        log = (tmp_path / "multirun" / name / "flower.log").read_text()
        assert "Going on after round" in log


@pytest.fixture
def plain_flower(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Give an environment for `flwr` with a home of its own; end the SuperLink it leaves behind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with marked() as mark:
        yield {
            "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(tmp_path / "home"),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            **mark,
        }


def test_plain_flwr_run_of_the_repository_gives_the_bits_of_the_command(
    tmp_path: Path, plain_flower: dict[str, str]
) -> None:
    options = "num-supernodes=8 client-resources-num-cpus=1"
    config = f"overrides='rounds=2 model=cnn' output-folder='{tmp_path / 'run'}'"
    words = ("run", config_folder().parent, "--stream", "--federation-config", options)
    typed("flwr", *words, "--run-config", config, folder=tmp_path, **plain_flower)
    listed = typed("flwr", "list", "--format", "json", folder=tmp_path, **plain_flower)
    assert "finished:completed" in listed.stdout

    typed("fedpw", "rounds=2", "model=cnn", "hydra.run.dir=own", folder=tmp_path)
    plain, own = (RunFolder(tmp_path / name) for name in ("run", "own"))
    assert plain.content("model.safetensors") == own.content("model.safetensors")
    for one, other in zip(plain.read_rounds(), own.read_rounds(), strict=True):
        assert replace(one, seconds=0.0) == replace(other, seconds=0.0)
