"""The ServerApp over a federation of real ClientApps: what a run leaves, and how it fails."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from support.app_federation import (
    DOMAIN_OF_CLIENT,
    NUM_CLIENTS,
    OVERRIDES,
    RUN_ID,
    TRAINING_PICTURES,
    AppGrid,
    experiment,
    server_context,
)
from support.browser import text_and_elements

from fedpw_flwr.checkpoint import CheckpointError
from fedpw_flwr.lab.app import client_app
from fedpw_flwr.lab.app.server_app import app
from fedpw_flwr.lab.compare.tensorboard import scalars_of_round
from fedpw_flwr.lab.config import early_checks
from fedpw_flwr.lab.config.configuration import ConfigurationError
from fedpw_flwr.lab.experiment import _built
from fedpw_flwr.lab.runs.records import RunSummary, best_round
from fedpw_flwr.lab.runs.run_folder import RunFolder, RunFolderError
from fedpw_flwr.rounds.faults import UnusableRepliesError

IMPATIENT = f"{OVERRIDES} runtime.connect_timeout=0.5"

raising = ClientApp()
diverging = ClientApp()


@raising.train()
def _raise(message: Message, context: Context) -> Message:
    raise RuntimeError("the disk of this site is full")


@diverging.train()
def _diverge(message: Message, context: Context) -> Message:
    reply = client_app.app(message, context)
    state = reply.content.array_records["arrays"].to_torch_state_dict()
    reply.content["arrays"] = ArrayRecord(
        {name: torch.full_like(tensor, torch.nan) for name, tensor in state.items()}
    )
    return reply


@dataclass
class FinishedRun:
    strategy: str
    overrides: str
    folder: RunFolder
    grid: AppGrid


@pytest.fixture(scope="module", params=["fedpw", "fedavg"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    strategy = str(request.param)
    overrides = f"{OVERRIDES} strategy={strategy}"
    folder = tmp_path_factory.mktemp(strategy) / "run"
    grid = AppGrid(overrides=overrides)
    app(grid, server_context(folder, overrides))
    return FinishedRun(strategy, overrides, RunFolder(folder), grid)


def test_a_run_leaves_all_its_files_and_nothing_else(run: FinishedRun) -> None:
    expected = {
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "model.safetensors",
        "model_best.safetensors",
        "accuracy.png",
        "partition.json",
        "partition.png",
        "report.html",
        "weights.png",
    }
    if run.strategy == "fedpw":
        expected.add("signals.png")
    found = {path.name: path.stat().st_size for path in run.folder.path.iterdir()}
    assert set(found) == expected
    assert all(found.values())


def test_every_round_is_recorded_with_every_client(run: FinishedRun) -> None:
    initial, *trained = run.folder.read_rounds()
    assert initial.clients is None
    assert [record.round for record in trained] == [1, 2]
    examples = np.array([TRAINING_PICTURES[domain] for domain in DOMAIN_OF_CLIENT])
    for record in trained:
        clients = record.clients
        assert clients is not None
        assert (clients.id, clients.domain) == (list(range(NUM_CLIENTS)), DOMAIN_OF_CLIENT)
        assert record.train_loss == pytest.approx(np.average(clients.loss, weights=examples))
        figures = (clients.p, clients.q, clients.drop_rate)
        if run.strategy == "fedavg":
            assert clients.weight == pytest.approx(examples / examples.sum())
            assert (figures, record.amplification) == ((None, None, None), None)
        else:
            assert [np.sum(shares) for shares in (clients.weight, *figures[:2])] == [
                pytest.approx(1)
            ] * 3
            assert (record.amplification or 0) >= 1
            assert None not in (clients.drop_rate, record.loss_term_share)
    asked = [message.metadata.message_type for message in run.grid.sent]
    assert asked == ["train"] * 2 * NUM_CLIENTS


def test_the_summary_agrees_with_the_rounds(run: FinishedRun) -> None:
    summary, records = run.folder.read_summary(), run.folder.read_rounds()
    best = best_round(records)
    assert best is not None
    assert (summary.strategy, summary.seed, summary.rounds) == (run.strategy, 0, 2)
    assert summary.accuracy == records[-1].accuracy
    assert summary.final == records[-1].spread
    assert (summary.best_round, summary.best) == (best.round, best.spread)
    assert summary.seconds == pytest.approx(sum(record.seconds for record in records))
    assert (summary.quarantined, summary.failed) == (0, 0)
    config = run.folder.config_file.read_bytes()
    assert summary.config_fingerprint == hashlib.sha256(config).hexdigest()


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(run: FinishedRun) -> None:
    def everything() -> dict[Path, bytes]:
        files = (path for path in run.folder.path.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files}

    before = everything()

    with pytest.raises(RunFolderError, match="already holds a run"):
        app(AppGrid(overrides=run.overrides), server_context(run.folder.path, run.overrides))

    assert everything() == before


def test_a_run_cannot_go_on_with_other_pictures_of_the_same_name(tmp_path: Path) -> None:
    def draw(seed: int) -> None:
        rng = np.random.default_rng(seed)
        pictures = {
            f"x_{split}": rng.integers(0, 256, (20, 8, 8), dtype=np.uint8)
            for split in ("train", "test")
        }
        labels = {f"y_{split}": np.arange(20) % 10 for split in ("train", "test")}
        np.savez(tmp_path / "site.npz", **pictures, **labels)
        _built.cache_clear()

    overrides = (
        f"dataset=four_domains dataset.folder={tmp_path} dataset.domains=[site] partition=iid "
        "partition.clients_per_domain=2 model=cnn model.width=4 client.epochs=1 rounds=1 "
        "runtime.device=cpu"
    )
    context = server_context(tmp_path / "run", overrides)
    draw(1)
    app(AppGrid(overrides=overrides, num_clients=2), context)
    draw(2)
    context.run_config["resume"] = True

    with pytest.raises(CheckpointError, match=r"pictures: '.*' in the checkpoint, '.*' now"):
        app(AppGrid(overrides=overrides, num_clients=2), context)


STOPPING = f"{OVERRIDES} partition.test_share=0.25 rounds=6 stop.metric=clients/std stop.target=1"


def test_a_run_that_stopped_early_says_so_also_when_it_is_resumed_and_can_go_on(
    tmp_path: Path, flower_log: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path / "run")

    def play(overrides: str, resume: bool = False) -> RunSummary:
        context = server_context(folder.path, overrides)
        context.run_config["resume"] = resume
        app(AppGrid(overrides=overrides), context)
        return folder.read_summary()

    # It is below 1 in every round.
    stopped = play(f"{STOPPING} stop.min_rounds=3")
    assert stopped.rounds == 3
    assert stopped.stopped is not None
    assert re.fullmatch(
        r"clients/std is 0.\d+ in round 3 and has reached its target, 1", stopped.stopped
    )
    assert f"Stopped after round 3 of 6: {stopped.stopped}" in flower_log.text
    again = play(STOPPING, resume=True)
    assert (again.rounds, again.stopped, again.final) == (3, stopped.stopped, stopped.final)
    longer = play(f"{OVERRIDES} partition.test_share=0.25 rounds=4", resume=True)
    assert (longer.rounds, longer.stopped) == (4, None)


def test_a_run_is_followed_in_a_tracker_under_the_names_of_a_later_export(
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
        event_accumulator,
    )

    overrides = f"{OVERRIDES} partition.test_share=0.25 tracking=[tensorboard]"
    app(AppGrid(overrides=overrides), server_context(tmp_path / "run", overrides))
    events = event_accumulator.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    tags = events.Tags()["scalars"]
    record = RunFolder(tmp_path / "run").read_rounds()[-1]
    for tag, value in scalars_of_round(record).items():
        assert tag in tags
        assert events.Scalars(tag)[-1].value == pytest.approx(value)


def test_broken_clients_cost_only_their_replies_and_are_counted(tmp_path: Path) -> None:
    grid = AppGrid(apps={1: diverging, 3: raising, 6: raising})
    app(grid, server_context(tmp_path / "run"))

    folder = RunFolder(tmp_path / "run")
    for record in folder.read_rounds()[1:]:
        assert (record.quarantined, record.failed) == (1, 2)
        assert record.clients is not None
        assert record.clients.id == [0, 2, 4, 5, 7]
        assert record.clients.domain == ["scans", "textured", "blurred", "blurred", "fonts"]
        assert sum(record.clients.weight) == pytest.approx(1)
    summary = folder.read_summary()
    assert (summary.quarantined, summary.failed) == (2, 4)
    page, _ = text_and_elements((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert f"Worst {100 * summary.final.worst:.3g} %" in page
    assert "2 quarantined, 4 failed" in page
    assert re.search(r"train: client 1 \(node \d+\) quarantined", page)


@pytest.mark.parametrize(
    ("strategy", "client", "error", "said"),
    [
        ("fedpw", raising, RuntimeError, "nothing was trained"),
        ("fedavg", raising, RuntimeError, "nothing was trained"),
        ("fedpw", diverging, UnusableRepliesError, r"round 1 have .* not finite.*learning rate"),
    ],
)
def test_a_run_in_which_every_client_fails_says_so(
    strategy: str, client: ClientApp, error: type[Exception], said: str, tmp_path: Path
) -> None:
    overrides = f"{OVERRIDES} strategy={strategy}"
    grid = AppGrid(apps=dict.fromkeys(range(NUM_CLIENTS), client), overrides=overrides)

    with pytest.raises(error, match=said):
        app(grid, server_context(tmp_path / "run", overrides))

    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert re.search(said, page)
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("connected", [0, NUM_CLIENTS - 1, NUM_CLIENTS + 1])
def test_a_federation_of_another_size_is_refused_before_anything_is_sent(
    connected: int, tmp_path: Path
) -> None:
    experiment(IMPATIENT)
    grid = AppGrid(num_clients=connected)
    since = time.monotonic()

    with pytest.raises(ConfigurationError, match=f"num-supernodes={NUM_CLIENTS}") as refusal:
        app(grid, server_context(tmp_path / "run", IMPATIENT))

    assert time.monotonic() - since < 2
    assert re.search(rf"\b{connected} clients", str(refusal.value))
    assert grid.sent == []
    assert not (tmp_path / "run").exists()


def test_the_server_waits_for_late_clients_and_names_a_folder_after_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = f"{OVERRIDES} rounds=1 runtime.connect_timeout=30"
    grid = AppGrid(overrides=overrides, connected=[0, 3, NUM_CLIENTS - 1])

    app(grid, server_context("", overrides))

    record = RunFolder(tmp_path / "outputs" / f"run-{RUN_ID}").read_rounds()[-1]
    assert record.clients is not None
    assert record.clients.id == list(range(NUM_CLIENTS))


@pytest.mark.parametrize(
    ("output", "override", "said"),
    [
        ("runs/mine", "", "output-folder='runs/mine' is relative"),
        ("{here}/run", "rounds=0", "rounds must be a whole number"),
        ("{here}/run", "strategy=fedwp", "fedwp"),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_leaves_anything(
    output: str, override: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grid, overrides = AppGrid(), f"{OVERRIDES} {override}".rstrip()

    with pytest.raises(ConfigurationError, match=said):
        app(grid, server_context(output.format(here=tmp_path), overrides))

    assert grid.sent == []
    assert list(tmp_path.iterdir()) == []


def test_slow_arithmetic_is_told_once_in_the_log_of_a_run_without_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(early_checks, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    overrides = f"{IMPATIENT} client.precision=bfloat16"
    grid = AppGrid(overrides=overrides, num_clients=0)
    with pytest.raises(ConfigurationError, match="0 clients are connected"):
        app(grid, server_context(tmp_path / "run", overrides))
    told = [one for one in caplog.records if "trains about ten times slower" in one.getMessage()]
    assert [one.levelname for one in told] == ["WARNING"]
