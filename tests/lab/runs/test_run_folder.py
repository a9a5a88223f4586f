"""A run folder keeps what was written to it, whatever happens in between."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpw_flwr.files import atomic_file
from fedpw_flwr.lab.runs.records import ClientFigures, RoundRecord, RunSummary, Spread, best_round
from fedpw_flwr.lab.runs.round_profile import MessageTimes, RoundProfile
from fedpw_flwr.lab.runs.run_folder import RunFolder, RunFolderError
from fedpw_flwr.wire.timings import CLIENT_PHASES, SERVER_PHASES

CLIENTS = ClientFigures(
    id=[0, 1],
    domain=["scans", "fonts"],
    weight=[0.4, 0.6],
    p=[0.5, 0.5],
    q=[0.3, 0.7],
    drop_rate=[0.35, 0.25],
    loss=[0.8, 1.2],
)
ROUND = RoundRecord(
    round=3,
    seconds=2.1,
    accuracy={"scans": 0.9, "fonts": 0.5},
    loss={"scans": 0.3, "fonts": 1.6},
    train_loss=1.0,
    clients=CLIENTS,
    loss_term_share=0.4,
    amplification=1.3,
    quarantined=1,
    failed=2,
    bounded=1,
)


def initial(accuracy: dict[str, float] | None = None) -> RoundRecord:
    return RoundRecord(0, 0.5, accuracy or {"scans": 0.1, "fonts": 0.1}, {"scans": 2.3})


def rounds_up_to(last: int) -> list[RoundRecord]:
    return [initial(), *(replace(ROUND, round=number) for number in range(1, last + 1))]


def run_of(worst: list[float]) -> list[RoundRecord]:
    """Rounds of two domains, the better one always 0.2 above the worse."""
    return [
        replace(ROUND, round=number, accuracy={"scans": value + 0.2, "fonts": value})
        for number, value in enumerate(worst)
    ]


def summary_of(records: list[RoundRecord]) -> RunSummary:
    return RunSummary.of_run(records, config_text="", strategy="fedpw", seed=4)


def strict_json(text: str | bytes) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "deep" / "run")
    run.start()
    return run


# ------------------------------------------------------------------------------------- rounds


def test_rounds_come_back_as_they_were_written(folder: RunFolder) -> None:
    server = {phase: 0.25 * number for number, phase in enumerate(SERVER_PHASES)}
    seconds = {phase: [0.5, 0.125] for phase in CLIENT_PHASES}
    times = MessageTimes(id=[0, 1], worker=[0, 0], waiting=[0.1, 0.2], seconds=seconds)
    written = [
        initial(),
        ROUND,
        replace(ROUND, profile=RoundProfile(server, times)),
        replace(ROUND, clients=ClientFigures(id=[0], domain=["scans"], weight=[1.0])),
    ]
    for record in written:
        folder.append_round(record)
    assert folder.read_rounds() == written


def test_a_line_has_the_documented_keys(folder: RunFolder) -> None:
    plain = ClientFigures(id=[0], domain=["scans"], weight=[1.0])  # FedAvg has no p and q
    for record in (initial(), ROUND, replace(ROUND, clients=plain)):
        folder.append_round(record)
    lines = folder.metrics_file.read_text().splitlines()
    first, second, third = (strict_json(line) for line in lines)
    assert list(first) == [
        *("round", "seconds", "accuracy", "loss"),
        *("mean_accuracy", "std_accuracy", "worst_accuracy"),
    ]
    assert list(second) == [
        *(*first, "train_loss", "clients", "loss_term_share"),
        *("amplification", "quarantined", "failed", "bounded"),
    ]
    assert second["mean_accuracy"] == pytest.approx(0.7)
    assert second["std_accuracy"] == pytest.approx(0.4 / math.sqrt(2))
    assert second["worst_accuracy"] == 0.5
    assert second["clients"]["p"] == [0.5, 0.5]
    assert set(third["clients"]) == {"id", "domain", "weight"}


def test_figures_that_are_not_finite_become_null_and_then_nan(folder: RunFolder) -> None:
    folder.append_round(
        replace(ROUND, accuracy={"scans": math.nan, "fonts": 0.5}, train_loss=math.inf)
    )
    line = strict_json(folder.metrics_file.read_text())
    assert line["accuracy"]["scans"] is None
    assert line["train_loss"] is None
    assert line["worst_accuracy"] is None
    (record,) = folder.read_rounds()
    assert math.isnan(record.accuracy["scans"])
    assert record.train_loss is not None
    assert math.isnan(record.train_loss)


def test_a_torn_last_line_is_left_out_and_then_replaced(folder: RunFolder) -> None:
    folder.append_round(initial())
    whole = folder.metrics_file.read_bytes()
    folder.metrics_file.write_bytes(whole + b'{"round": 1, "secon')
    assert [record.round for record in folder.read_rounds()] == [0]
    folder.append_round(ROUND)
    assert [record.round for record in folder.read_rounds()] == [0, 3]


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(min_value=0))
def test_a_reader_at_any_moment_sees_whole_rounds_only(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    run = RunFolder(tmp_path_factory.mktemp("run"))
    run.start()
    for record in rounds_up_to(2):
        run.append_round(record)
    written = run.metrics_file.read_bytes()
    seen = written[: cut % (len(written) + 1)]
    run.metrics_file.write_bytes(seen)
    assert [record.round for record in run.read_rounds()] == list(range(seen.count(b"\n")))


def test_a_broken_line_in_the_middle_is_named(folder: RunFolder) -> None:
    folder.append_round(initial())
    with folder.metrics_file.open("a") as stream:
        stream.write('{"round": 1}\n')
    folder.append_round(ROUND)
    with pytest.raises(RunFolderError, match=r"line 2 of .*no 'seconds'"):
        folder.read_rounds()


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry a client"):
        replace(CLIENTS, weight=[1.0])


# ------------------------------------------------------------------------------------- folder


def test_a_second_run_in_a_folder_is_refused(folder: RunFolder) -> None:
    with pytest.raises(RunFolderError, match=r"already holds a run.*another output folder"):
        RunFolder(folder.path).start()


def test_a_folder_with_other_files_can_take_a_run_and_a_file_cannot(tmp_path: Path) -> None:
    (tmp_path / "flower.log").write_text("started")
    RunFolder(tmp_path).start()
    assert RunFolder(tmp_path).read_rounds() == []
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder(tmp_path / "flower.log").start()
    with pytest.raises(RunFolderError, match="cannot write"):
        RunFolder(tmp_path / "flower.log" / "deeper").start()


def test_what_is_no_run_s_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run's folder"):
        RunFolder(tmp_path).go_on(0)
    with pytest.raises(RunFolderError, match="round 3 cannot be recorded"):
        RunFolder(tmp_path).append_round(ROUND)


def test_following_a_run_does_not_import_torch() -> None:
    code = "import fedpw_flwr.lab.runs.run_folder, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_that_goes_on_keeps_the_rounds_up_to_its_checkpoint(folder: RunFolder) -> None:
    rounds = rounds_up_to(3)
    for record in rounds:
        folder.append_round(record)
    folder.write_summary(summary_of(rounds))
    with folder.metrics_file.open("ab") as stream:
        stream.write(b'{"round": 4')
    folder.go_on(2)
    assert folder.read_rounds() == rounds[:3]
    assert not folder.has("summary.json")
    folder.append_round(replace(ROUND, round=3, failed=0))
    assert [record.round for record in folder.read_rounds()] == [0, 1, 2, 3]
    with pytest.raises(RunFolderError, match="lacks rounds before 7"):
        folder.go_on(7)
    folder.go_on(None)
    assert folder.read_rounds() == []


def test_a_run_killed_before_its_first_file_of_rounds_begins_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config("seed: 1")
    folder.go_on(None)
    assert folder.read_rounds() == []


# ------------------------------------------------------------------------------ atomic writing


@pytest.mark.parametrize("interrupted", [True, False])
def test_the_new_file_appears_only_when_it_is_whole(tmp_path: Path, interrupted: bool) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")

    def write() -> None:
        with atomic_file(path) as partial:
            partial.write_text("new")
            assert partial.parent == tmp_path
            assert path.read_text() == "old"
            if interrupted:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        write()
    assert path.read_text() == ("old" if interrupted else "new")
    assert list(tmp_path.iterdir()) == [path]


# -------------------------------------------------------------------------------------- models


def test_every_kind_of_tensor_comes_back(folder: RunFolder) -> None:
    state = {
        "weight": torch.randn(3, 4).t(),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "num_batches_tracked": torch.tensor(7),
        "scale": torch.tensor(0.5),
        "half": torch.randn(3).to(torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "rows": torch.randn(2, 3).expand(2, 2, 3),
    }
    folder.save_model(state, metadata={"round": "3"})
    loaded, metadata = folder.load_model()
    assert metadata == {"round": "3"}
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"weight": torch.zeros(2), "__metadata__": torch.zeros(2)}, "__metadata__"),
        ({"sparse": torch.eye(2).to_sparse()}, ""),
    ],
)
def test_a_model_that_cannot_be_saved_leaves_the_old_one(
    folder: RunFolder, state: dict[str, torch.Tensor], says: str
) -> None:
    folder.save_model({"weight": torch.ones(2)})
    with pytest.raises(RunFolderError, match=f"cannot be saved.*{says}"):
        folder.save_model(state)
    assert torch.equal(folder.load_model()[0]["weight"], torch.ones(2))
    assert not list(folder.path.glob("*.partial"))


def test_last_and_best_model_are_two_files_for_whoever_can_read_the_run(folder: RunFolder) -> None:
    path = folder.save_model({"weight": torch.zeros(2)})
    folder.save_model({"weight": torch.ones(2)}, "model_best.safetensors")
    assert folder.load_model()[0]["weight"].sum() == 0
    assert folder.load_model("model_best.safetensors")[0]["weight"].sum() == 2
    assert path.stat().st_mode == folder.metrics_file.stat().st_mode


# ------------------------------------------------------------------------------------- summary


def test_the_summary_has_the_figures_of_the_run(folder: RunFolder) -> None:
    records = run_of([0.05, 0.1, 0.2, 0.3, 0.6, 0.4, 0.5])
    summary = summary_of(records)
    std = 0.2 / math.sqrt(2)
    assert summary.rounds == 6
    assert summary.accuracy == records[-1].accuracy
    assert summary.final == Spread(pytest.approx(0.6), pytest.approx(std), 0.5)
    assert summary.last_3.worst == pytest.approx(0.5)
    assert summary.last_5.worst == pytest.approx(0.4)
    assert summary.last_5.std == pytest.approx(std)
    assert (summary.best_round, summary.best.worst) == (4, 0.6)
    assert summary.seconds == pytest.approx(7 * 2.1)
    assert summary.versions.keys() == {
        *("python", "fedpw_flwr", "flwr", "flwr-datasets", "torch", "torchvision"),
        *("numpy", "scipy", "ray"),
    }
    assert len(summary.config_fingerprint) == 64

    folder.write_summary(summary)
    written = strict_json((folder.path / "summary.json").read_text())
    assert written["worst_accuracy"] == 0.5
    assert written["last_3_rounds"]["worst_accuracy"] == pytest.approx(0.5)
    assert written["best_worst_round"]["round"] == 4
    assert folder.read_summary() == summary


def test_the_initial_model_is_no_part_of_the_last_rounds() -> None:
    assert summary_of(run_of([0.0, 0.4])).last_5.worst == pytest.approx(0.4)


def test_a_summary_is_missing_until_the_run_finished(folder: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="has not finished"):
        folder.read_summary()


def test_the_best_round_is_the_first_with_the_best_worst_domain_and_a_finite_loss() -> None:
    best = best_round(run_of([0.1, 0.5, 0.5, 0.4]))
    assert best is not None
    assert best.round == 1
    assert best_round([initial({"scans": math.nan})]) is None
    sound = initial({"scans": 0.1, "fonts": 0.1})
    assert best_round([sound, replace(ROUND, loss={"scans": math.nan, "fonts": 1.0})]) is sound


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_spread_does_not_depend_on_the_order_of_domains(values: list[float], random: Any) -> None:
    spread, other = (
        Spread.over_domains({str(index): value for index, value in enumerate(order)})
        for order in (values, random.sample(values, len(values)))
    )
    assert spread == other
    assert spread.worst <= spread.mean + 1e-12
    assert spread.std >= 0
