"""Trackers of experiments, the real libraries, hear what a run hears, and cannot end it."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, MetricRecord
from support.grid import ClientsGrid
from support.records import array_record
from support.small_model import MODEL, good_client

from fedpw_flwr import FedPW
from fedpw_flwr.observers import (
    EarlyStopping,
    MLflowTracker,
    Observer,
    TensorBoardTracker,
    Tracker,
    WandbTracker,
)

Rows = dict[str, list[tuple[int, float]]]
"""Round and value of each figure, as a tracker kept them."""

SETTINGS = {"seed": 3, "strategy": {"name": "fedpw", "beta": 0.25}}


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def train(
    folder: Path,
    tracker: Tracker | None,
    rounds: int,
    stop: bool = False,
    error: BaseException | None = None,
) -> None:
    """Play a run to some round, from where it was; it may end early there, or fail in the next."""
    watches: list[Observer] = [tracker] if tracker is not None else []
    if stop:
        watches.append(EarlyStopping("round/a?", target=rounds))

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if error is not None and server_round > rounds:
            raise error
        return MetricRecord({"round/a?": server_round})

    FedPW(observers=watches, checkpoint_dir=folder / "checkpoints", resume=True).start(
        *(ClientsGrid(dict.fromkeys([11, 12, 13], good_client)), array_record(MODEL)),
        9 if stop or error else rounds,
        evaluate_fn=evaluate,
    )


def tensorboard_rows(folder: Path) -> tuple[Rows, str | None]:
    from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
        event_accumulator,
    )

    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    stopped = [events.Tensors(tag)[0].tensor_proto.string_val[0] for tag in tags["tensors"]]
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]
    }, (stopped[0].decode() if stopped else None)


def mlflow_run(folder: Path) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.parent / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'fedpw'")
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def mlflow_rows(folder: Path) -> tuple[Rows, str | None]:
    client, run = mlflow_run(folder)
    assert run.info.run_name == folder.name
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "3", "strategy.name": "fedpw", "strategy.beta": "0.25"}
    histories = {
        name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics
    }
    rows = {
        name: [(metric.step, metric.value) for metric in history]
        for name, history in histories.items()
    }
    # It allows no question mark in a name.
    return {name.replace("_", "?"): rows.pop(name) for name in ["round/a_"]} | rows, (
        run.data.tags.get("stopped")
    )


def wandb_records(file: Path) -> Iterator[Any]:
    """Read a run's log: blocks of 32 KiB, in them pieces with a checksum, a length and a kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, record = file.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if position > len(content):
            # It is still being written.
            return
        # Whole, or its last piece.
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


def settled(file: Path) -> Path:
    """Wait until W&B's own process has written the end of a run, shortly after `finish`."""
    give_up = time.monotonic() + 60
    while not any(record.HasField("exit") for record in wandb_records(file)):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    return file


def wandb_rows(folder: Path) -> tuple[Rows, str | None]:
    """Read the offline runs in their order, as `wandb sync` does."""
    rows: Rows = {}
    stopped, ids = None, set()
    for file in sorted(
        folder.glob("wandb/offline-run-*/*.wandb"), key=lambda one: one.stat().st_mtime
    ):
        for record in wandb_records(settled(file)):
            if record.HasField("run"):
                ids.add(record.run.run_id)
                assert record.run.display_name == folder.name
                assert record.run.project == "fedpw"
            if record.HasField("history"):
                items = {
                    "/".join(item.nested_key) or item.key: float(item.value_json)
                    for item in record.history.item
                    if item.key != "_step"
                }
                step = record.history.step.num
                for name in items.keys() - {"_timestamp", "_runtime"}:
                    rows.setdefault(name, []).append((step, items[name]))
            for item in record.summary.update:
                if "stopped" in (item.key, *item.nested_key):
                    stopped = item.value_json.strip('"')
    assert len(ids) == 1
    return rows, stopped


TRACKERS: Mapping[type[Tracker], Any] = {
    TensorBoardTracker: tensorboard_rows,
    MLflowTracker: mlflow_rows,
    WandbTracker: wandb_rows,
}


# MLflow takes seconds to make its tables.
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.long] * (kind is MLflowTracker)) for kind in TRACKERS],
    ids=lambda kind: kind.library,
)
@pytest.mark.parametrize("first", ["tracked", "untracked"])
def test_a_run_that_went_on_is_one_run_of_the_tracker_with_each_round_once(
    kind: type[Tracker], first: str, tmp_path: Path
) -> None:
    pytest.importorskip(kind.library)
    folder = tmp_path / "mine"
    failure = ConnectionError("the disk is full")
    with pytest.raises(ConnectionError):
        train(folder, kind(folder, SETTINGS) if first == "tracked" else None, 2, error=failure)
    if kind is MLflowTracker and first == "tracked":
        assert mlflow_run(folder)[1].info.status == "FAILED"
    train(folder, kind(folder, SETTINGS), rounds=4, stop=True)
    rows, stopped = TRACKERS[kind](folder)
    assert rows["round/a?"] == [(number, float(number)) for number in range(5)]
    told = {"train/train_loss", "evaluate/accuracy", "weight/client_11", "p/client_13"}
    assert told <= rows.keys()
    assert [step for step, _ in rows["weight/client_11"]] == [1, 2, 3, 4]
    assert stopped == "round/a? is 4 in round 4 and has reached its target, 4"


@pytest.mark.long
def test_mlflow_tells_an_interrupted_run_from_a_failed_one(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", MLflowTracker(tmp_path / "run"), 1, error=KeyboardInterrupt())
    assert mlflow_run(tmp_path / "run")[1].info.status == "KILLED"


def test_tensorboard_draws_a_round_anew_that_was_lost_with_its_checkpoint(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    for after, rounds in ((None, range(4)), (1, range(6))):
        tracker.on_begin(after)
        for server_round in rounds:
            tracker.on_round_end(server_round, {"accuracy": server_round})
        tracker.on_end(None, None)
    assert tensorboard_rows(tmp_path)[0]["accuracy"] == [(step, step) for step in range(6)]


@pytest.mark.parametrize("kind", TRACKERS, ids=lambda kind: kind.library)
def test_a_tracker_that_fails_warns_once_and_the_run_goes_on(
    kind: type[Tracker], tmp_path: Path, flower_log: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip(kind.library)
    (tmp_path / "file").touch()
    train(tmp_path / "run", kind(tmp_path / "file"), rounds=3)
    assert flower_log.text.count(f"{kind.__name__} failed, and the run goes on without it") == 1
    assert (tmp_path / "run" / "checkpoints" / "round-000003").is_dir()


def test_a_library_that_is_missing_is_named_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WandbTracker, "library", "wandb_that_nobody_has")
    with pytest.raises(ImportError, match=r"WandbTracker needs wandb_that.*pip install"):
        WandbTracker(tmp_path)
