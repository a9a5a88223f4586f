"""What is published: the page, its tables, and the runs they were made of."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import published
import pytest
from omegaconf import OmegaConf
from PIL import Image

from fedpw_flwr.lab.compare.command import compare
from fedpw_flwr.lab.compare.markdown import plots_of_page
from fedpw_flwr.lab.runs.packed_runs import PACKED_FILES, PackedRun, pack_runs, packed_runs
from fedpw_flwr.lab.runs.run_folder import FAILURE_FILE, RunFolder

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "results"
COMPARISONS = sorted(RESULTS.glob("*/comparison.csv"))


def folders_of(table: Path) -> list[str]:
    return list(pd.read_csv(table)["folder"].dropna())


def test_every_experiment_is_published_and_nothing_else() -> None:
    names = {one.name for one in published.PUBLISHED}
    assert {table.parent.name for table in COMPARISONS} == names
    assert {remarks.parent.name for remarks in RESULTS.glob("*/remarks.md")} <= names


def test_every_value_of_a_grid_is_one_of_a_setting_that_the_method_has() -> None:
    tuned: dict[str, set[str]] = {}
    for one in published.PUBLISHED:
        for sweep in one.sweeps:
            words = dict(word.split("=", 1) for word in sweep)
            keys = {key.removeprefix("strategy.") for key in words if key.startswith("strategy.")}
            for method in words["strategy"].split(","):
                file = REPOSITORY / "conf" / "strategy" / f"{method}.yaml"
                assert keys <= OmegaConf.load(file).keys(), (one.name, method)
            if one.name == "tuning":
                tuned[words["strategy"]] = keys
    assert tuned["fedmgda_plus"] == {"epsilon", "server_learning_rate", "decay"}


def test_page_is_made_of_the_comparisons_and_remarks_that_lie_there() -> None:
    assert published.page() == (REPOSITORY / "RESULTS.md").read_text(encoding="utf-8")


def test_the_page_links_what_lies_there_and_nothing_else() -> None:
    page = (REPOSITORY / "RESULTS.md").read_text(encoding="utf-8")
    links = set(re.findall(r"\]\((?!https?:)([^)#]+)\)", page))
    assert len(links) > len(COMPARISONS)
    assert [link for link in links if not (REPOSITORY / link).is_file()] == []
    made_of = {published.PREFACE, published.REMARKS, published.KEPT.name, "differences.csv"}
    there = [path for path in RESULTS.rglob("*") if path.is_file() and path.name not in made_of]
    assert [path for path in there if str(path.relative_to(REPOSITORY)) not in links] == []
    for folder in (table.parent for table in COMPARISONS):
        assert plots_of_page(folder / "comparison.md") == set(folder.glob("*.png")) != set()


@pytest.fixture(scope="module")
def kept() -> dict[str, PackedRun]:
    return {run.path.name: run for run in packed_runs(RESULTS / "runs.tar.xz")}


@pytest.mark.parametrize("table", COMPARISONS, ids=lambda table: table.parent.name)
def test_runs_behind_a_table_are_kept(table: Path, kept: dict[str, PackedRun]) -> None:
    assert folders_of(table)
    for folder in folders_of(table):
        run = kept[Path(folder).name]
        assert (table.parent / folder).resolve() == run.path
        assert set(PACKED_FILES) - set(run.files) == {FAILURE_FILE}


def test_a_table_can_be_made_again_of_the_runs_that_are_kept(tmp_path: Path) -> None:
    there = RESULTS / "embedded" / "comparison.csv"
    names = sorted(Path(folder).name for folder in folders_of(there))
    compare([RESULTS / "runs.tar.xz"], only=names, output=tmp_path, against="fedavg")
    made, stood = pd.read_csv(tmp_path / "comparison.csv"), pd.read_csv(there)
    pd.testing.assert_frame_equal(
        made.drop(columns="folder"), stood.drop(columns="folder"), rtol=1e-6
    )


@pytest.fixture
def some_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: dict[str, PackedRun],
) -> list[PackedRun]:
    """Two runs, the only ones that are kept."""
    monkeypatch.setattr(published, "COMPARISONS", tmp_path)
    monkeypatch.setattr(published, "KEPT", tmp_path / "runs.tar.xz")
    some = [run for name, run in sorted(kept.items()) if name.startswith("embedded_")][:2]
    pack_runs(tmp_path / "runs.tar.xz", some)
    return some


def test_a_clone_takes_up_the_runs_that_are_kept_and_leaves_its_own(
    tmp_path: Path, some_kept: list[PackedRun]
) -> None:
    own, other = (tmp_path / "multirun" / run.path.name for run in some_kept)
    own.mkdir(parents=True)
    published.take_up(tmp_path / "multirun")
    assert list(own.iterdir()) == []
    assert RunFolder(other).read_summary() == some_kept[1].read_summary()
    assert {file.name: file.read_bytes() for file in other.iterdir()} == some_kept[1].files
    assert set((tmp_path / "multirun").iterdir()) == {own, other}


def test_finished_runs_are_kept_without_the_places_of_this_machine(
    tmp_path: Path, some_kept: list[PackedRun]
) -> None:
    runs, archives = tmp_path / "multirun", tmp_path / "archives"
    runs.mkdir()
    published.take_up(runs)
    finished = runs / "finished"
    shutil.copytree(runs / some_kept[0].path.name, finished)
    config = RunFolder(finished).config_file
    text = config.read_text(encoding="utf-8")
    config.write_text(f"{text}somewhere: {archives}\nelse: {Path.cwd()}/here\n", encoding="utf-8")
    shutil.copytree(finished, runs / "unfinished")
    (runs / "unfinished" / "summary.json").unlink()
    published.keep(runs, archives)
    *before, added = packed_runs(tmp_path / "runs.tar.xz")
    assert [run.files for run in before] == [run.files for run in some_kept]
    assert added.path.name == "finished"
    assert added.files["config.yaml"].decode() == f"{text}somewhere: DATA\nelse: here\n"
    written = (tmp_path / "runs.tar.xz").stat().st_ino
    published.keep(runs, archives)
    assert (tmp_path / "runs.tar.xz").stat().st_ino == written


def test_a_folder_that_another_call_works_in_is_refused(tmp_path: Path) -> None:
    with (
        published.alone_in(tmp_path / "runs"),
        pytest.raises(SystemExit, match="another call works in"),
        published.alone_in(tmp_path / "runs"),
    ):
        pass
    with published.alone_in(tmp_path / "runs"):
        assert list((tmp_path / "runs").iterdir()) == []


def test_of_a_comparison_the_picture_that_the_page_shows_is_left(
    tmp_path: Path, some_kept: list[PackedRun]
) -> None:
    page = compare([tmp_path / "runs.tar.xz"], output=tmp_path / "made")
    before = page.read_text(encoding="utf-8")
    drawn = {path.name for path in page.parent.glob("*.png")}
    with Image.open(page.parent / "fairness.png") as image:
        size = image.size
    published.leave_shown(page)
    assert len(drawn) > 1
    assert [path.name for path in page.parent.glob("*.png")] == ["fairness.png"]
    with Image.open(page.parent / "fairness.png") as image:
        assert (image.mode, image.size) == ("P", size)
    after = page.read_text(encoding="utf-8")
    assert re.findall(r"^!\[.*\]\((.*)\)$", after, flags=re.MULTILINE) == ["fairness.png"]
    text, _, columns = before.partition("![")
    assert after.startswith(text)
    assert after.endswith(columns[columns.index("## Columns") :])
