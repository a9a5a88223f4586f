"""Recording: it changes nothing the strategy decides, and writes what the round was."""

from __future__ import annotations

import math
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from support.app_federation import OVERRIDES, experiment, initial_arrays
from support.records import payloads

from fedpw_flwr.lab.app.recording import RunRecorder, client_metrics
from fedpw_flwr.lab.app.testing import GlobalModelTest
from fedpw_flwr.lab.data.examples import ImageSet
from fedpw_flwr.lab.runs.records import RoundRecord, Spread
from fedpw_flwr.lab.runs.run_folder import RunFolder, RunFolderError


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    started = RunFolder(tmp_path / "run")
    started.start()
    return started


@pytest.fixture
def recorder(folder: RunFolder) -> RunRecorder:
    return RunRecorder(folder, GlobalModelTest(experiment()))


def reply(client: int, loss: float, examples: int) -> RecordDict:
    return RecordDict(
        {
            "metrics": MetricRecord({"train_loss": loss, "num-examples": examples}),
            "identity": ConfigRecord({"client-id": client}),
        }
    )


def model_that_says(digit: int) -> ArrayRecord:
    """The model with every weight zero: it calls all pictures `digit`."""
    state = {name: torch.zeros_like(value) for name, value in fresh_state().items()}
    state["classifier.2.bias"][digit] = 1.0
    return ArrayRecord(state)


def fresh_state() -> dict[str, torch.Tensor]:
    return dict(experiment().new_model().state_dict())


def worst_share_of(digit: int) -> float:
    """Share of a digit in the domain that has it least."""
    return min(share_of(digit, domain.test) for domain in experiment().data.domains)


def share_of(digit: int, pictures: ImageSet) -> float:
    return float((pictures.labels == digit).double().mean())


def test_client_metrics_weight_the_loss_by_examples_and_keep_each_client() -> None:
    contents = [reply(4, 1.0, 10), reply(0, 2.0, 30)]

    metrics = client_metrics(contents, "num-examples")

    assert dict(metrics) == {
        "train_loss": pytest.approx(1.75),
        "client-id": [4, 0],
        "client-loss": [1.0, 2.0],
        "client-share": pytest.approx([0.25, 0.75]),
    }


def test_the_initial_model_is_recorded_without_clients(
    folder: RunFolder, recorder: RunRecorder
) -> None:
    figures = recorder.record_round(0, model_that_says(3))

    (record,) = folder.read_rounds()
    assert record.round == 0
    assert record.accuracy == pytest.approx(
        {domain.name: share_of(3, domain.test) for domain in experiment().data.domains}
    )
    assert set(record.loss) == set(record.accuracy)
    assert (record.clients, record.train_loss, record.quarantined) == (None, None, None)
    assert record.client_accuracy is None
    assert figures["mean_accuracy"] == pytest.approx(record.spread.mean)
    assert figures["std_accuracy"] == pytest.approx(record.spread.std)
    assert figures["worst_accuracy"] == pytest.approx(worst_share_of(3))
    assert {name: figures[f"accuracy/{name}"] for name in record.accuracy} == record.accuracy


FEDPW = {
    "train_loss": 1.5,
    "fedpw-client-id": [6, 0, 3],
    "fedpw-weight": [0.6, 0.1, 0.3],
    "fedpw-p": [0.65, 0.05, 0.35],
    "fedpw-q": [0.66, 0.06, 0.36],
    "fedpw-drop-rate": [0.16, 0.1, 0.13],
    "fedpw-loss": [1.6, 1.0, 1.3],
    "fedpw-loss-term-share": 0.4,
    "fedpw-amplification": 1.25,
    "fedpw-quarantined": 2,
    "fedpw-failed": 1,
    "fedpw-empty": 4,
    "fedpw-bounded": 3,
}
BASELINE = {
    "client-id": [6, 0, 3],
    "client-share": [0.5, 0.3, 0.2],
    "client-weight": [0.6, 0.1, 0.3],
    "client-loss": [1.6, 1.0, 1.3],
    "quarantined": 2,
    "failed": 1,
    "empty": 4,
}


@pytest.mark.parametrize("metrics", [FEDPW, BASELINE], ids=["fedpw", "baseline"])
def test_figures_are_sorted_by_client_and_stay_with_their_client(
    folder: RunFolder, recorder: RunRecorder, metrics: dict[str, Any]
) -> None:
    recorder.on_step(1, None, MetricRecord(metrics))
    recorder.record_round(1, initial_arrays())

    (record,) = folder.read_rounds()
    clients = record.clients
    assert clients is not None
    assert clients.id == [0, 3, 6]
    assert clients.domain == ["scans", "textured", "fonts"]
    assert clients.weight == [0.1, 0.3, 0.6]
    assert clients.loss == [1.0, 1.3, 1.6]
    assert (record.quarantined, record.failed, record.empty) == (2, 1, 4)
    assert record.train_loss == metrics.get("train_loss")
    if metrics is FEDPW:
        assert clients.p == [0.05, 0.35, 0.65]
        assert clients.q == [0.06, 0.36, 0.66]
        assert clients.drop_rate == [0.1, 0.13, 0.16]
        assert (record.loss_term_share, record.amplification, record.bounded) == (0.4, 1.25, 3)


def test_a_round_s_metrics_are_not_those_of_the_next(
    folder: RunFolder, recorder: RunRecorder
) -> None:
    recorder.on_step(
        1, None, client_metrics([reply(0, 1.0, 10), reply(5, 2.0, 10)], "num-examples")
    )
    recorder.record_round(1, initial_arrays())
    recorder.record_round(2, initial_arrays())

    first, second = folder.read_rounds()
    assert first.clients is not None
    assert first.clients.id == [0, 5]
    assert (second.clients, second.train_loss) == (None, None)


def test_the_last_model_and_the_one_with_the_best_worst_domain_are_kept(
    folder: RunFolder, recorder: RunRecorder
) -> None:
    digit_of_share = {worst_share_of(digit): digit for digit in range(10)}
    low, middle, *_, high = (digit_of_share[share] for share in sorted(digit_of_share))

    for server_round, digit in enumerate([middle, high, low, high]):
        recorder.record_round(server_round, model_that_says(digit))
        last, metadata = folder.load_model("model.safetensors")
        assert int(last["classifier.2.bias"].argmax()) == digit
        assert metadata == {"round": str(server_round)}

    best, metadata = folder.load_model("model_best.safetensors")
    assert int(best["classifier.2.bias"].argmax()) == high
    assert metadata == {"round": "1"}


def test_a_saved_model_is_the_global_model_bit_for_bit_and_that_is_left_alone(
    folder: RunFolder, recorder: RunRecorder
) -> None:
    arrays = initial_arrays()
    before = payloads(arrays)
    recorder.record_round(0, arrays)
    saved, _ = folder.load_model("model.safetensors")
    recorder.record_round(1, model_that_says(0))

    assert payloads(ArrayRecord({name: saved[name] for name in arrays})) == before
    assert payloads(arrays) == before


def test_a_diverged_model_is_recorded_in_strict_json_and_its_run_has_no_summary(
    folder: RunFolder, recorder: RunRecorder
) -> None:
    recorder.on_step(1, None, client_metrics([reply(0, 1.0, 10)], "num-examples"))
    diverged = {name: torch.full_like(value, math.nan) for name, value in fresh_state().items()}
    recorder.record_round(1, ArrayRecord(diverged))

    (record,) = folder.read_rounds()
    assert all(math.isnan(loss) for loss in record.loss.values())
    assert "NaN" not in folder.metrics_file.read_text()
    with pytest.raises(RuntimeError, match="training diverged: after round 1"):
        recorder.finish()
    assert not (folder.path / "summary.json").exists()


def test_a_run_needs_one_usable_reply_to_get_a_summary(
    folder: RunFolder, recorder: RunRecorder
) -> None:
    recorder.record_round(0, initial_arrays())
    recorder.on_step(1, None, MetricRecord({"fedpw-quarantined": 6, "fedpw-failed": 2}))
    recorder.record_round(1, initial_arrays())
    with pytest.raises(RuntimeError, match="none of the 1 rounds"):
        recorder.finish()
    with pytest.raises(RunFolderError, match=r"summary\.json is missing"):
        folder.read_summary()

    recorder.on_step(1, None, client_metrics([reply(0, 1.0, 10)], "num-examples"))
    recorder.record_round(2, initial_arrays())
    recorder.finish()
    summary = folder.read_summary()
    assert (summary.rounds, summary.quarantined, summary.failed) == (2, 6, 2)


def test_seconds_are_those_of_the_round_alone(folder: RunFolder, recorder: RunRecorder) -> None:
    time.sleep(0.2)  # waiting for the clients to connect
    started = time.monotonic()
    recorder.record_round(0, initial_arrays())
    tested = time.monotonic()
    time.sleep(0.1)  # the clients train
    recorder.record_round(1, initial_arrays())
    ended = time.monotonic()

    initial, first = (record.seconds for record in folder.read_rounds())
    assert 0 < initial <= tested - started
    assert 0.1 <= first <= ended - started - initial


def test_one_domain_has_no_spread_and_is_recorded_all_the_same(folder: RunFolder) -> None:
    alone = OVERRIDES.split(" partition.")[0] + " dataset.domains=[scans] partition=by_domain"
    recorder = RunRecorder(folder, GlobalModelTest(experiment(alone)))

    recorder.on_step(
        1, None, client_metrics([reply(0, 1.0, 10), reply(1, 2.0, 10)], "num-examples")
    )
    figures = recorder.record_round(1, initial_arrays(alone))
    recorder.finish()

    assert set(figures) == {"mean_accuracy", "worst_accuracy", "accuracy/scans", "loss/scans"}
    (record,) = folder.read_rounds()
    assert set(record.accuracy) == {"scans"}
    assert math.isnan(folder.read_summary().final.std)


def test_a_round_records_each_client_s_accuracy_on_the_pictures_it_keeps(
    folder: RunFolder,
) -> None:
    kept = experiment(f"{OVERRIDES} partition.test_share=0.25")
    recorder = RunRecorder(folder, GlobalModelTest(kept))
    recorder.record_round(0, model_that_says(3))
    (record,) = folder.read_rounds()
    assert record.client_accuracy is not None
    for share, accuracy in zip(kept.shares, record.client_accuracy, strict=True):
        assert share.test is not None
        assert accuracy == pytest.approx(share_of(3, share.test))
    assert record.figures()["clients/mean"] == pytest.approx(fmean(record.client_accuracy))


def test_a_model_is_tested_in_every_nth_round_and_in_the_last(folder: RunFolder) -> None:
    shown: list[RoundRecord] = []
    built = experiment(f"{OVERRIDES} rounds=4 runtime.evaluate_every=3")
    recorder = RunRecorder(folder, GlobalModelTest(built), shown=shown.append)
    for number in range(5):
        client = client_metrics([reply(0, 1.0, 10), reply(1, 2.0, 10)], "num-examples")
        recorder.on_step(number, None, client if number else None)
        figures = recorder.record_round(number, initial_arrays())
        assert ("mean_accuracy" in figures) == (number in (0, 3, 4))
    recorder.finish()
    records = folder.read_rounds()
    assert [bool(record.accuracy) for record in records] == [True, False, False, True, True]
    assert [record.round for record in shown] == [0, 1, 2, 3, 4]
    assert all(record.clients is not None for record in records[1:])
    summary = folder.read_summary()
    assert summary.last_3 == Spread.average([records[3].spread, records[4].spread])
