"""What is published: the page, its tables, and the runs they were made of."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import experiments
import pandas as pd
import published
import pytest
import results_page
from experiments import Experiment
from omegaconf import OmegaConf

from fedpw_flwr.lab.compare.command import compare
from fedpw_flwr.lab.runs.packed_runs import PACKED_FILES, pack_runs
from fedpw_flwr.lab.runs.run_folder import FAILURE_FILE, METRICS_FILE, RunFolder

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "results"
TUNED = [one for one in experiments.PUBLISHED if (RESULTS / one.name / "runs.tar.xz").is_file()]
COMPARED = [one for one in TUNED if (RESULTS / one.name / "comparison.csv").is_file()]


def name_of(one: Experiment) -> str:
    return one.name


def test_nothing_but_experiments_lies_in_results() -> None:
    names = {one.name for one in experiments.PUBLISHED}
    assert COMPARED
    assert {folder.name for folder in RESULTS.iterdir() if folder.is_dir()} <= names


def test_what_is_tried_is_a_setting_that_the_method_has() -> None:
    for one in experiments.PUBLISHED:
        assert one.chosen.keys() in (one.grids.keys(), set())
        for method, grid in [*one.grids.items(), *one.chosen.items()]:
            key, _, values = grid.partition("=")
            file = REPOSITORY / "conf" / "strategy" / f"{method}.yaml"
            assert key in OmegaConf.load(file), (one.name, method)
            if method in one.chosen:
                assert one.chosen[method].removeprefix(f"{key}=") in values or grid in values


@pytest.mark.parametrize("one", TUNED, ids=name_of)
def test_what_is_chosen_is_what_the_protocols_rules_choose(one: Experiment) -> None:
    rates, tuning = results_page.rates_of(one), results_page.tuning_of(one)
    if len(set(rates["rate"])) == len(one.rates.split(",")):
        # Under label skew it does not matter whether that many rounds have converged.
        judged = rates.assign(gain=0.0) if one.of_clients else rates
        assert results_page.chosen_rate(judged) == (one.learning_rate, one.rounds)
    if one.chosen:
        assert results_page.chosen_values(tuning) == one.chosen
    page = (RESULTS / one.name / "tuning.md").read_text(encoding="utf-8")
    assert page == results_page.tuning_page(one)


def test_page_is_made_of_what_lies_there_and_links_it() -> None:
    page = (REPOSITORY / "RESULTS.md").read_text(encoding="utf-8")
    assert page == results_page.page()
    assert len(page.splitlines()) <= 250
    links = set(re.findall(r"\]\((?!https?:)([^)#]+)\)", page))
    assert len(links) > len(COMPARED)
    assert [link for link in links if not (REPOSITORY / link).is_file()] == []


@pytest.mark.parametrize("one", COMPARED, ids=name_of)
def test_runs_behind_a_table_are_kept(one: Experiment) -> None:
    kept = {run.path.name: run for run in published.kept(one)}
    table = pd.read_csv(RESULTS / one.name / "comparison.csv")
    folders = table["folder"].dropna()
    assert len(folders) == sum(table["kind"] == "run") > 0
    for folder in folders:
        assert set(PACKED_FILES) - set(kept[Path(folder).name].files) == {FAILURE_FILE}
    methods = table[table["kind"] == "method"]
    assert set(methods["seeds"]) == {len(one.seeds)}
    assert len(methods) == len(one.methods.split(",")) + len(one.chosen) + len(one.others)


def test_a_table_can_be_made_again_of_the_runs_that_are_kept(tmp_path: Path) -> None:
    one = COMPARED[-1]
    there = RESULTS / one.name / "comparison.csv"
    names = [Path(folder).name for folder in pd.read_csv(there)["folder"].dropna()]
    some = [name for name in sorted(names) if "_fedavg_seed" in name or "_fedpw_seed" in name]
    compare([there.with_name("runs.tar.xz")], only=some, output=tmp_path, against="fedavg")
    made, stood = (
        pd.read_csv(file).set_index(["kind", "method", "seed"]).drop(columns=["folder", "target"])
        for file in (tmp_path / "comparison.csv", there)
    )
    unlike = ["reached", "rounds_to_target"]
    pd.testing.assert_frame_equal(
        made.drop(columns=unlike), stood.loc[made.index].drop(columns=unlike), rtol=1e-6
    )


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """An experiment of which two runs are kept, and nothing else."""
    some = published.kept(TUNED[0])[:2]
    monkeypatch.setattr(results_page, "RESULTS", tmp_path / "results")
    (tmp_path / "results" / "mine").mkdir(parents=True)
    pack_runs(tmp_path / "results" / "mine" / "runs.tar.xz", some)
    return replace(experiments.PUBLISHED[0], name="mine")


def test_a_clone_takes_up_the_runs_that_are_kept_and_leaves_its_own(
    tmp_path: Path, one: Experiment
) -> None:
    kept = published.kept(one)
    own, other = (tmp_path / "multirun" / run.path.name for run in kept)
    own.mkdir(parents=True)
    published.take_up(one, tmp_path / "multirun")
    assert list(own.iterdir()) == []
    assert RunFolder(other).read_summary() == kept[1].read_summary()
    assert {file.name: file.read_bytes() for file in other.iterdir()} == kept[1].files
    assert set((tmp_path / "multirun").iterdir()) == {own, other}


def test_finished_runs_are_kept_rounded_and_without_the_places_of_this_machine(
    tmp_path: Path, one: Experiment
) -> None:
    runs, archives = tmp_path / "multirun", tmp_path / "archives"
    runs.mkdir()
    published.take_up(one, runs)
    before = published.kept(one)
    finished = runs / "finished"
    shutil.copytree(runs / before[0].path.name, finished)
    config, metrics = RunFolder(finished).config_file, finished / METRICS_FILE
    text = config.read_text(encoding="utf-8")
    config.write_text(f"{text}somewhere: {archives}\nelse: {Path.cwd()}/here\n", encoding="utf-8")
    first = json.loads(metrics.read_text(encoding="utf-8").splitlines()[0])
    metrics.write_text(
        json.dumps(first | {"train_loss": 1 / 3, "mean_accuracy": 1 / 3}) + "\n", encoding="utf-8"
    )
    shutil.copytree(finished, runs / "unfinished")
    (runs / "unfinished" / "summary.json").unlink()
    published.keep(one, runs, archives)
    after = {run.path.name: run for run in published.kept(one)}
    added = after.pop("finished")
    assert {name: run.files for name, run in after.items()} == {
        run.path.name: run.files for run in before
    }
    assert added.files["config.yaml"].decode() == f"{text}somewhere: DATA\nelse: here\n"
    rounded = json.loads(added.files[METRICS_FILE])
    assert rounded["train_loss"] == 0.333
    assert rounded["mean_accuracy"] == 0.33333
    file = tmp_path / "results" / "mine" / "runs.tar.xz"
    written = file.stat().st_ino
    published.keep(one, runs, archives)
    assert file.stat().st_ino == written


def test_a_folder_that_another_call_works_in_is_refused(tmp_path: Path) -> None:
    with (
        published.alone_in(tmp_path / "runs"),
        pytest.raises(SystemExit, match="another call works in"),
        published.alone_in(tmp_path / "runs"),
    ):
        pass
    with published.alone_in(tmp_path / "runs"):
        assert list((tmp_path / "runs").iterdir()) == []


def test_a_rate_counts_from_where_it_has_converged_and_the_best_of_these_is_chosen() -> None:
    rates = pd.DataFrame(
        [
            *((0.1, 20, 60.0, 3.0), (0.1, 40, 70.0, 0.4), (0.1, 60, 90.0, 0.1)),
            *((0.2, 20, 71.0, 0.3), (0.3, 60, 99.0, 0.5)),
        ],
        columns=["rate", "rounds", "mean", "gain"],
    )
    assert results_page.chosen_rate(rates) == (0.2, 20)
    tuning = pd.DataFrame(
        [("afl", "a=1", 3.0), ("afl", "a=2", 4.0), ("term", "t=1", 1.0)],
        columns=["method", "value", "sum"],
    )
    assert results_page.chosen_values(tuning) == {"afl": "a=2", "term": "t=1"}
