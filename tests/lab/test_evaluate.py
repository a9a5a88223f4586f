"""`fedpw-evaluate` finds the figures that the run recorded, or says why it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from support.app_federation import AppGrid, server_context

from fedpw_flwr.lab.app.server_app import app
from fedpw_flwr.lab.evaluate import evaluate_run, main
from fedpw_flwr.lab.runs.run_folder import RunFolder


def write_archives(folder: Path) -> None:
    """Two domains of noise around a level that tells the class; one is harder."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name, gain in (("bright", 20), ("dark", 6)):
        arrays = {}
        for split, count in (("train", 60), ("test", 97)):
            labels = draw.integers(0, 10, count)
            levels = 30 + gain * labels[:, None, None, None]
            pictures = levels + draw.normal(0, 10, (count, 8, 8, 3))
            arrays[f"x_{split}"] = pictures.clip(0, 255).astype(np.uint8)
            arrays[f"y_{split}"] = labels.astype(np.int64)
        np.savez(folder / f"{name}.npz", **arrays)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two rounds in two domains, a client in each."""
    base = tmp_path_factory.mktemp("evaluate")
    write_archives(base / "pictures")
    overrides = (
        f"dataset=four_domains dataset.folder={base / 'pictures'} dataset.domains=[bright,dark] "
        "partition=iid partition.clients_per_domain=1 model=cnn model.width=4 client.epochs=1 "
        "rounds=2 runtime.device=cpu"
    )
    app(AppGrid(overrides=overrides, num_clients=2), server_context(base / "run", overrides))
    return RunFolder(base / "run")


@pytest.fixture
def run(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the run that a test may damage."""
    shutil.copytree(finished.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, which must fail, and return what it says."""
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


# ------------------------------------------------------------------------------------- figures


def test_the_last_model_has_the_figures_of_the_last_line(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run.path), "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    recorded = json.loads(run.metrics_file.read_text().splitlines()[-1])
    for key in ("round", "accuracy", "mean_accuracy", "std_accuracy", "worst_accuracy"):
        assert found[key] == recorded[key]
    assert found["loss"] == pytest.approx(recorded["loss"], rel=1e-6)
    assert found["recorded_accuracy"] == recorded["accuracy"]
    assert found["num_examples"] == {"bright": 97, "dark": 97}


def test_the_best_model_has_the_figures_of_its_round(run: RunFolder) -> None:
    best = run.read_summary().best_round
    assert best is not None
    evaluation, recorded = evaluate_run(run, best=True, device="cpu"), run.read_rounds()[best]
    assert (evaluation.round, evaluation.spread) == (best, recorded.spread)
    assert evaluation.recorded == recorded.accuracy


def test_the_table_shows_every_domain_and_the_spread(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run.path), "--device", "cpu"]) == 0
    table = capsys.readouterr().out
    spread = run.read_rounds()[-1].spread
    for word in ("bright", "dark", "mean (AVG)", "STD (ddof=1)", "worst", "recorded"):
        assert word in table
    for figure in (spread.mean, spread.std, spread.worst):
        assert f"{100 * figure:.2f}" in table


def test_a_model_that_does_not_say_its_round_is_tested_all_the_same(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    state, _ = run.load_model()
    run.save_model(state)
    assert main([str(run.path)]) == 0
    assert "recorded" not in capsys.readouterr().out


def test_data_that_moved_can_be_named(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = OmegaConf.load(run.config_file).dataset.folder
    shutil.copytree(old, tmp_path / "moved")
    text = run.config_file.read_text().replace(old, str(tmp_path / "gone"))
    run.write_config(text)
    assert str(tmp_path / "gone") in refused([str(run.path)], capsys)
    assert main([str(run.path), "--json", f"dataset.folder={tmp_path / 'moved'}"]) == 0


# -------------------------------------------------------------------------------------- errors


def test_a_missing_folder_and_a_folder_without_a_run_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no folder" in refused([str(tmp_path / "nothing")], capsys)
    assert "not a run's folder" in refused([str(tmp_path)], capsys)


def test_a_missing_truncated_or_ill_fitting_model_is_named(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.path / "model_best.safetensors").unlink()
    assert "model_best.safetensors is missing" in refused([str(run.path), "--best"], capsys)
    said = refused([str(run.path), "model.width=8"], capsys)
    assert "does not fit" in said
    assert "size mismatch" in said
    state, _ = run.load_model()
    first, *_ = state
    del state[first]
    path = run.save_model(state)
    assert "Missing key" in refused([str(run.path)], capsys)
    path.write_bytes(path.read_bytes()[:-10])
    assert "truncated" in refused([str(run.path)], capsys)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["dataset.domains=[bright,sketches]"], ["dataset", "sketches"]),
        (["dataset.fodler=here"], ["no key 'dataset.fodler' to override"]),
        (["model.width=0"], ["model.width must be a whole number of at least 1, got 0"]),
        (["folder"], ["is no override"]),
        (["=3"], ["is no override"]),
        (["--device", "abacus"], ["device='abacus' cannot be used"]),
    ],
)
def test_what_cannot_be_asked_of_a_run_is_refused(
    run: RunFolder, options: list[str], says: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused([str(run.path), *options], capsys)
    assert all(word in said for word in says)


def test_a_missing_or_broken_configuration_is_named(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    run.write_config("dataset: {")
    assert "is not a configuration" in refused([str(run.path)], capsys)
    run.write_config("seed: 0\n")
    assert "dataset._target_ is missing" in refused([str(run.path)], capsys)
    run.config_file.unlink()
    assert "config.yaml is missing" in refused([str(run.path)], capsys)
