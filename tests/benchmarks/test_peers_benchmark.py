"""The peers do fedpw's work, and their rounds, times and memory are read as they are."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import peers
import psutil
import pytest
from peak_memory import peak_memory

from fedpw_flwr.lab.config.configuration import compose_configuration
from fedpw_flwr.lab.data.examples import IMAGENET_MEAN, IMAGENET_STD
from fedpw_flwr.lab.models.cnn import SmallCNN


@pytest.fixture
def workload(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(peers.FOLDER / "peers"))
    return importlib.import_module("workload")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return an archive with the images of one client and some to test on."""
    random = np.random.default_rng(0)
    folder = tmp_path / "cut"
    folder.mkdir()
    np.savez(
        folder / "mnist.npz",
        x_train=random.integers(0, 256, (400, 28, 28), dtype=np.uint8),
        y_train=random.integers(0, 10, 400),
        x_test=random.integers(0, 256, (50, 28, 28), dtype=np.uint8),
        y_test=random.integers(0, 10, 50),
    )
    return folder / "mnist.npz"


def run_of(**figures: float) -> peers.Run:
    zero = {"first": 0.0, "each": 0.0, "end": 0.0, "total": 0.0, "accuracy": 0.0, "memory": 0.0}
    return peers.Run(**{**zero, **figures})


def test_fedpw_is_told_to_do_the_peers_work(workload: ModuleType) -> None:
    words = " ".join((*peers.WORK, "dataset.folder=data"))
    told = compose_configuration("config", words)
    assert told.partition.clients_per_domain == workload.CLIENTS
    assert told.partition.train_per_client == workload.IMAGES
    client = told.client
    assert (client.epochs, client.batch_size) == (workload.EPOCHS, workload.BATCH)
    assert client.learning_rate == workload.LEARNING_RATE
    assert (client.momentum, client.weight_decay, client.crop_padding) == (0, 0, 0)


def test_the_peers_network_and_normalisation_are_fedpws(workload: ModuleType) -> None:
    ours, theirs = SmallCNN(10, in_channels=1), workload.network()
    shapes = [[weight.shape for weight in model.parameters()] for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert pytest.approx(sum(IMAGENET_MEAN) / 3) == workload.MEAN
    assert pytest.approx(sum(IMAGENET_STD) / 3) == workload.STD


def test_images_are_cut_from_an_archive_once_for_all(tmp_path: Path, archive: Path) -> None:
    peers.cut(archive.parent, tmp_path / "mnist.npz")
    with np.load(archive) as all_images, np.load(tmp_path / "mnist.npz") as cut:
        assert sorted(cut.files) == sorted(all_images.files)
        assert sorted(cut["y_train"]) == sorted(all_images["y_train"])
        assert sorted(map(bytes, cut["x_test"])) == sorted(map(bytes, all_images["x_test"]))


def test_rounds_are_found_among_what_else_a_peer_prints(tmp_path: Path) -> None:
    printed = "loading\n\rClient: 50 %\r            \rround 1 accuracy 0.5000\nround 2 accuracy 0.7"
    (tmp_path / "printed.txt").write_text(printed)
    assert peers.accuracies("blazefl_threads", tmp_path) == [0.5]


def test_fedpws_rounds_are_those_after_the_initial_model(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lines = [f'{{"round": {n}, "mean_accuracy": 0.{n + 1}}}\n' for n in range(3)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines)[:-5])
    assert peers.accuracies(peers.OURS, tmp_path) == [0.2]


def test_a_peer_is_measured_from_its_command_to_its_exit(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import time\nfor n in 1, 2: time.sleep(0.5 / n); print(f'round {n} accuracy 0.5')"
    monkeypatch.setattr(peers, "words", lambda *_: ["-u", "-c", code])
    run = peers.measure("plain_loop", sys.executable, archive, 2)
    assert 0.2 < run.each < 0.5 < run.first < run.total
    assert run.total == pytest.approx(run.first + run.each + run.end)
    assert run.accuracy == 50


@pytest.mark.long
def test_a_real_peer_is_measured(archive: Path) -> None:
    run = peers.measure("plain_loop", sys.executable, archive, 2)
    assert 0 < run.each < run.first < run.total
    assert run.memory > 50


def test_a_peer_that_fails_says_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = ["-c", "print('round 1 accuracy 0.5'); open('none.npz')"]
    monkeypatch.setattr(peers, "words", lambda *_: fails)
    with pytest.raises(peers.NotMeasured, match=r"failed: FileNotFoundError: .*none\.npz"):
        peers.measure("plain_loop", sys.executable, tmp_path / "none.npz", 2)


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PACKAGES, "fedlab_serial", "there-is-no-such-package")
    with pytest.raises(peers.NotMeasured, match="not installed: there-is-no-such-package"):
        peers.version("fedlab_serial", sys.executable)


def test_tables_tell_medians_and_reasons_and_compare_with_the_goals() -> None:
    runs = {
        peers.OURS: [run_of(first=second, end=1.0) for second in (9.0, 3.0, 4.0)],
        "pfl_research": [run_of(first=2.0)],
        "fedlab_serial": [],
    }
    versions = {peers.OURS: "1", "pfl_research": "2", "fedlab_serial": "not installed: fedlab"}
    ours, _, fedlab = peers.figures(runs, versions, 0.0).rows
    assert ours[:3] == ("fedpw", "1", "4.0")
    assert fedlab == ("fedlab_serial", "not installed: fedlab", *[""] * 6)
    assert peers.goals(runs).rows == (
        ("first round", "pfl_research", "4.00", "2.00", "2.00", "1.5"),
        ("after the last round", "", "1.00", "", "", "2 s"),
    )


def test_memory_of_a_process_that_outlives_its_parent_counts_and_it_is_ended() -> None:
    sleeper = "import time; held = bytearray(100 << 20); time.sleep(60)"
    start = (
        "from subprocess import DEVNULL, Popen; import sys;"
        f"words = [sys.executable, '-c', {sleeper!r}];"
        "print(Popen(words, stdout=DEVNULL, start_new_session=True).pid)"
    )
    with peak_memory() as memory:
        started = subprocess.run([sys.executable, "-c", start], stdout=subprocess.PIPE, check=True)
        time.sleep(2.5)
        sleeping = psutil.Process(int(started.stdout))
        assert sleeping.ppid() == os.getpid()
        assert sleeping.status() != psutil.STATUS_ZOMBIE
    assert memory[0] > 100
    assert not sleeping.is_running()
