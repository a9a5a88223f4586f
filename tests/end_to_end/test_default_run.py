"""The command a newcomer types, run for real: exit status, files, accuracy, plots, processes."""

import json
import math
from dataclasses import dataclass

import pytest
from matplotlib.image import imread
from safetensors.torch import load_file
from support.commands import left_of, marked, typed

from fedpw_flwr.lab.runs.run_folder import RunFolder

DOMAINS = {"scans", "textured", "blurred", "fonts"}


@dataclass(frozen=True)
class Finished:
    """A run of the command that came to its end."""

    output: str
    folder: RunFolder
    left_over: list[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Run a third of the default experiment once, from a folder that is not the repository."""
    somewhere = tmp_path_factory.mktemp("somewhere")
    with marked() as mark:
        words = ("fedpw", "rounds=10", "hydra.run.dir=the run")
        done = typed(*words, folder=somewhere, timeout=540, **mark)
        left_over = [process.name() for process in left_of(mark)]
    return Finished(done.stdout + done.stderr, RunFolder(somewhere / "the run"), left_over)


def test_the_command_succeeds_and_so_says_the_log(run: Finished) -> None:
    log = (run.folder.path / "flower.log").read_text()
    assert log.endswith("the run completed\n")


def test_every_domain_is_learned(run: Finished) -> None:
    last = run.folder.read_rounds()[-1]
    assert set(last.accuracy) == DOMAINS
    assert last.spread.mean >= 0.65  # one in ten by guessing
    assert last.spread.worst >= 0.40


def test_progress_names_accuracy_spread_and_time_left_of_every_round(run: Finished) -> None:
    rounds = run.folder.read_summary().rounds
    lines = [line for line in run.output.splitlines() if line.startswith("round ")]
    assert len(lines) == rounds + 1
    assert all("mean" in line and "spread" in line and "worst" in line for line in lines)
    assert "left" in lines[1]


def test_metrics_hold_a_line_a_round_with_weights_that_sum_to_one(run: Finished) -> None:
    records = run.folder.read_rounds()
    assert [record.round for record in records] == list(range(len(records)))
    for record in records[1:]:
        assert record.clients is not None
        assert record.clients.id == list(range(8))
        assert math.isclose(sum(record.clients.weight), 1.0, abs_tol=1e-9)
        assert record.clients.p is not None
        assert record.clients.q is not None
        assert record.quarantined == 0
        assert record.seconds > 0


def test_summary_agrees_with_the_last_round(run: Finished) -> None:
    summary, last = run.folder.read_summary(), run.folder.read_rounds()[-1]
    assert summary.accuracy == last.accuracy
    assert summary.final == last.spread
    assert summary.strategy == "fedpw"
    assert summary.seed == 0


def test_models_of_the_last_and_the_best_round_are_saved(run: Finished) -> None:
    last = load_file(run.folder.path / "model.safetensors")
    best = load_file(run.folder.path / "model_best.safetensors")
    assert last.keys() == best.keys()
    assert all(tensor.isfinite().all() for tensor in last.values())


@pytest.mark.parametrize("plot", ["accuracy.png", "weights.png", "signals.png"])
def test_plots_are_pictures_with_something_on_them(run: Finished, plot: str) -> None:
    picture = imread(run.folder.path / plot)
    assert min(picture.shape[:2]) > 300
    assert picture[..., :3].std() > 0.02


def test_no_half_written_file_and_no_process_is_left(run: Finished) -> None:
    assert not list(run.folder.path.glob("*.partial"))
    assert not run.left_over


def test_evaluating_the_saved_model_gives_the_recorded_figures(run: Finished) -> None:
    folder = run.folder.path
    figures = json.loads(typed("fedpw-evaluate", folder, "--json", folder=folder).stdout)
    recorded = run.folder.read_rounds()[-1].accuracy
    assert figures["accuracy"] == pytest.approx(recorded, abs=1e-6)


def test_a_second_run_into_the_same_folder_is_refused(run: Finished) -> None:
    before = (run.folder.path / "metrics.jsonl").read_bytes()
    words = ("fedpw", "hydra.run.dir=the run")
    done = typed(*words, folder=run.folder.path.parent, status=None, timeout=60)
    assert done.returncode != 0
    assert "already holds a run" in done.stderr
    assert (run.folder.path / "metrics.jsonl").read_bytes() == before
