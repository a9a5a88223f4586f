"""What is published: the page, its tables, and the runs they were made of."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from fedpw_flwr.experiment.comparison.command import compare

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "results"
COMPARISONS = sorted(RESULTS.glob("*/comparison.csv"))


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import published as module

    return module


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_experiment_is_published_and_nothing_else(published: ModuleType) -> None:
    names = {one.name for one in published.PUBLISHED}
    assert {table.parent.name for table in COMPARISONS} == names
    assert {remarks.parent.name for remarks in RESULTS.glob("*/remarks.md")} <= names


def test_every_value_of_a_grid_is_one_of_a_setting_that_the_method_has(
    published: ModuleType,
) -> None:
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


def test_page_is_made_of_the_comparisons_and_remarks_that_lie_there(
    published: ModuleType,
) -> None:
    assert published.page() == (REPOSITORY / "RESULTS.md").read_text(encoding="utf-8")


def test_every_link_of_the_page_leads_to_a_file() -> None:
    page = (REPOSITORY / "RESULTS.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page)
    assert len(links) > len(COMPARISONS)
    assert [link for link in links if not (REPOSITORY / link).is_file()] == []


@pytest.mark.parametrize("table", COMPARISONS, ids=lambda table: table.parent.name)
def test_runs_behind_a_table_are_kept(table: Path, published: ModuleType) -> None:
    folders = {row["folder"] for row in rows(table) if row["folder"]}
    assert folders
    for folder in folders:
        kept = RESULTS / "runs" / Path(folder).name
        assert [name for name in published.KEPT_FILES if not (kept / name).is_file()] == []


def test_a_table_can_be_made_again_of_the_runs_that_are_kept(tmp_path: Path) -> None:
    there = RESULTS / "embedded" / "comparison.csv"
    folders = {RESULTS / "runs" / Path(row["folder"]).name for row in rows(there) if row["folder"]}
    compare(sorted(folders), output=tmp_path, against="fedavg")
    again = rows(tmp_path / "comparison.csv")
    assert len(again) == len(rows(there))
    for made, stood in zip(again, rows(there), strict=True):
        assert made.keys() == stood.keys()
        for column in made.keys() - {"folder"}:
            try:
                assert float(made[column]) == pytest.approx(float(stood[column]), nan_ok=True)
            except ValueError:
                assert made[column] == stood[column]
