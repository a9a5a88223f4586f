"""`fedpw-compare` writes tables and plots of all runs it finds, and names all it leaves out."""

from __future__ import annotations

import csv
import math
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from matplotlib.image import imread
from omegaconf import OmegaConf
from support.browser import shown
from support.made_runs import write_run

from fedpw_flwr.lab.compare.command import compare, main
from fedpw_flwr.lab.compare.markdown import plots_of_page, write_markdown
from fedpw_flwr.lab.compare.runs import find_runs
from fedpw_flwr.lab.compare.settings import group_runs
from fedpw_flwr.lab.compare.statistics import windows_of
from fedpw_flwr.lab.compare.tables import ComparedSetting, write_csv_files
from fedpw_flwr.lab.compare.tensorboard import scalars_of_round, write_events
from fedpw_flwr.lab.runs.holdings import ClientHolding, Holdings
from fedpw_flwr.lab.runs.packed_runs import pack_runs
from fedpw_flwr.lab.runs.run_folder import RunFolder


def write_runs(folder: Path) -> Path:
    """Write two methods with two seeds each."""
    for seed in (0, 1):
        write_run(folder / f"a{seed}", "fedavg", seed, 70 + seed)
        write_run(folder / "deeper" / f"b{seed}", "fedpw", seed, 74 + 3 * seed)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Runs that a test may change."""
    return write_runs(tmp_path / "runs")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison of unchanged runs."""
    return compare([write_runs(tmp_path_factory.mktemp("compared") / "runs")])


def tables_of(folder: Path) -> Path:
    """The page of a comparison, and its CSV files beside it, without plots."""
    runs, left_out = find_runs([folder])
    settings, _ = group_runs(runs)
    compared = [
        ComparedSetting(one, windows_of(one, 5), one.reference(None), math.nan, "", {})
        for one in settings
    ]
    write_markdown(folder / "comparison.md", compared, left_out)
    write_csv_files(folder, compared)
    return folder / "comparison.md"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_runs_are_found_at_any_depth_once_and_not_in_checkpoints(runs: Path) -> None:
    write_run(runs / "a0" / "checkpoints" / "copy")
    write_run(runs / ".hidden" / "run")
    (runs / "notes").mkdir()
    (runs / "notes" / "summary.json").write_text("{}")
    finished, left_out = find_runs([runs, runs / "a0", runs / "deeper" / ".." / "a1"])
    assert [run.path.name for run in finished] == ["a0", "a1", "b0", "b1"]
    assert left_out == []


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.yaml", None, "config.yaml is missing"),
        ("config.yaml", "dataset: {", "is not a configuration"),
        ("config.yaml", "- a\n", "it has no keys"),
        ("config.yaml", "a: ${nothing.there}\n", "is not a configuration"),
        ("summary.json", "{}", "summary.json is not a run's summary (no 'last_3_rounds')"),
        ("metrics.jsonl", "nonsense\n", "is not a round's record"),
        ("metrics.jsonl", "", "holds no round"),
        ("metrics.jsonl", None, "metrics.jsonl is missing"),
        ("partition.json", "[]", "partition.json is not a record of what clients hold"),
        ("partition.json", '{"clients": [{"domain": "a"}]}', "what clients hold (no 'train')"),
    ],
)
def test_a_damaged_run_is_left_out_and_named(
    runs: Path, file: str, content: str | None, reason: str
) -> None:
    damaged = runs / "a0" / file
    if content is None:
        damaged.unlink()
    else:
        damaged.write_text(content)
    finished, (left_out,) = find_runs([runs])
    assert len(finished) == 3
    assert (left_out.path, left_out.status) == (runs / "a0", "unreadable")
    assert reason in left_out.reason


def test_packed_runs_are_compared_as_the_folders_they_were(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(runs / "stopped", finished=False)
    write_run(runs / "broken", finished=False).mark_failed("finished:failed", "too few")
    (write_run(runs / "odd").path / "config.yaml").write_text("- a\n")
    flat = [RunFolder(path.parent) for path in runs.glob("**/config.yaml")]
    for run in flat:
        if run.path.parent != runs:
            run.path.rename(runs / run.path.name)
    compare([runs], output=tmp_path / "before")
    said = capsys.readouterr().out
    pack_runs(tmp_path / "runs.tar.xz", map(RunFolder, runs.iterdir()))
    runs.rename(tmp_path / "moved away")
    packed = compare([tmp_path / "runs.tar.xz"]).parent
    assert packed == tmp_path / "comparison"
    assert capsys.readouterr().out == said.replace(f"{tmp_path}/before", str(packed))
    made = sorted(path.name for path in (tmp_path / "before").iterdir())
    assert made == sorted(path.name for path in packed.iterdir())
    for name in made:
        assert (packed / name).read_bytes() == (tmp_path / "before" / name).read_bytes(), name


def test_runs_can_be_chosen_by_the_names_of_their_folders(runs: Path) -> None:
    finished, left_out = find_runs([runs], ["a*", "b1"])
    assert [run.path.name for run in finished] == ["a0", "a1", "b1"]
    assert left_out == []


def test_the_csv_has_a_row_a_run_and_a_row_a_method(runs: Path) -> None:
    assert main([str(runs), "--last", "2", "--target", "60", "--against", "fedpw"]) == 0
    page = (runs / "comparison" / "comparison.md").read_text(encoding="utf-8")
    assert "### Difference to fedpw, last round" in page
    found = rows(runs / "comparison" / "comparison.csv")
    assert [(row["kind"], row["method"], row["seed"]) for row in found] == [
        ("method", "fedavg", ""),
        ("run", "fedavg", "0"),
        ("run", "fedavg", "1"),
        ("method", "fedpw", ""),
        ("run", "fedpw", "0"),
        ("run", "fedpw", "1"),
    ]
    fedavg, first, second = found[:3]
    assert float(first["last_round.domains.mean"]) == pytest.approx(60)
    assert float(second["last_round.domains.mean"]) == pytest.approx(61)
    assert float(fedavg["last_round.domains.mean"]) == pytest.approx(60.5)
    assert float(fedavg["last_round.domains.mean.sd"]) == pytest.approx(math.sqrt(0.5))
    assert float(first["last_round.accuracy.svhn"]) == pytest.approx(50)
    assert float(first["last_round.domains.std"]) == pytest.approx(20 / math.sqrt(2), abs=1e-6)
    assert float(first["last_2_rounds.domains.mean"]) == pytest.approx((60 + 45) / 2)
    assert (fedavg["seeds"], fedavg["reached"], fedavg["rounds_to_target"]) == ("2", "2", "3.0")
    assert (runs / "comparison" / first["folder"]).resolve() == runs / "a0"
    assert (float(first["seconds"]), float(fedavg["seconds"])) == (8.0, 8.0)


def test_the_page_holds_tables_whose_rows_are_whole_and_links_that_lead_to_plots(
    page: Path,
) -> None:
    text = page.read_text(encoding="utf-8")
    best = ("**75.50 ± 2.12**", "**55.50 ± 2.12**", "**65.50 ± 2.12**")
    assert "| fedpw | 2 | " + " | ".join(best) in text
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
    links = re.findall(r"!\[.+\]\((.+)\)", text)
    names = {"fairness.png", "curves.png", "domains.png", "rounds_to_target.png", "weights.png"}
    assert {Path(link).name for link in links} == names
    assert {plot.name for plot in page.parent.glob("*.png")} == names
    assert all(imread(page.parent / unquote(link)).std() > 0.05 for link in links)
    assert str(page.parents[2]) not in text
    assert "### Difference to fedavg, last round" in text
    found = rows(page.parent / "differences.csv")
    row = next(row for row in found if row["figure"] == "domains.mean")
    assert (row["method"], row["reference"], row["window"]) == ("fedpw", "fedavg", "last_round")
    # Seed 0: 64 to 60, seed 1: 67 to 61. With one degree of freedom p = 1 - 2/π · arctan t.
    assert float(row["difference"]) == pytest.approx(5)
    assert float(row["difference.sd"]) == pytest.approx(math.sqrt(2))
    assert float(row["p_t"]) == pytest.approx(1 - 2 / math.pi * math.atan(5), abs=1e-6)
    assert row["p_wilcoxon"] == ""


def test_a_terminals_width_breaks_names_at_their_commas_and_no_figure(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rate in (1.0, 1.25):
        keys = {"server_learning_rate": rate, "server_momentum": rate / 2}
        write_run(runs / f"m{rate}", "fedavgm", strategy_keys=keys)
    monkeypatch.setenv("COLUMNS", "80")
    assert main([str(runs)]) == 0
    words = capsys.readouterr().out.split()
    table = words[words.index("method") : words.index("Tables")]
    assert {"fedavgm,", "server_learning_rate=1.25,", "server_momentum=0.625"} <= set(table)
    page = set((runs / "comparison" / "comparison.md").read_text().replace("*", " ").split())
    decimals = {word for word in table if re.fullmatch(r"[\d.]*\.[\d.]*", word)}
    assert len(decimals) > 8
    assert decimals <= page


def test_left_out_runs_are_in_the_page_and_on_the_terminal(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(runs / "stopped", finished=False)
    RunFolder(runs / "begun").start()
    traceback = "Traceback (most recent call last):\n  ...\nValueError: too few\n"
    write_run(runs / "deeper" / "failed").mark_failed("finished:failed", traceback)
    RunFolder(runs / "unstarted").mark_failed("not-started", "dataset.folder is missing\nsee ...")
    (runs / "odd").mkdir()
    (runs / "odd" / "failure.json").write_text("[]")
    older = write_run(runs / "again", "fedavg", 0, 10.0)
    os.utime(older.path / "summary.json", (1.0, 1.0))
    (runs / "a1" / "summary.json").write_text("{}")
    assert main([str(runs)]) == 0
    printed = capsys.readouterr().out
    text = (runs / "comparison" / "comparison.md").read_text(encoding="utf-8")
    assert "**Left out: 7 runs** (3 failed, 1 repeated, 2 unfinished, 1 unreadable)." in text
    for name, status, reason in (
        ("deeper/failed", "failed", "ValueError: too few |"),
        ("unstarted", "failed", "dataset.folder is missing |"),
        ("odd", "failed", "failure.json does not say why |"),
        ("stopped", "unfinished", "the last recorded round is 3 |"),
        ("begun", "unfinished", "no round yet |"),
        ("again", "repeated", "the same was run again later: a0 |"),
        ("a1", "unreadable", "summary.json is not a run's summary"),
    ):
        assert f"| ../{name} | {status} | {reason}" in text
        assert f"left out, {status}: {runs / name} " in printed


@pytest.mark.parametrize(
    ("runs_of_one_setting", "told"),
    [
        (
            [{"strategy": "fedpw"}, {"data_digest": "9f8e7d6c5b"}],
            "**Not all runs recorded which images they stood on**: 1 of 2 runs did not",
        ),
        (
            [{"strategy": "fedpw", "stopped": "accuracy has reached [its] target"}, {}],
            "**Stopped early**, so that last rounds differ: fedpw, seed 0: after round 3 of 3, "
            r"accuracy has reached \[its\] target.",
        ),
        (
            [
                {"strategy": "fedavg", "package": "0.1.0+aaaa"},
                {"strategy": "fedpw", "package": "0.1.0+aaaa"},
                {"strategy": "afl", "package": "0.1.0+bbbb"},
                {"strategy": "term"},
            ],
            "**Made by more than one state of the package**: 0.1.0+aaaa (2 runs), 0.1.0+bbbb "
            "(1 run), not recorded (1 run).",
        ),
        (
            [{"seed": 0}, {"seed": 2}, {"strategy": "fedpw", "seed": 1}],
            "**Methods were run with different seeds**: fedavg: 0, 2; fedpw: 1",
        ),
    ],
)
def test_circumstances_in_which_runs_differ_are_pointed_out(
    tmp_path: Path, page: Path, runs_of_one_setting: list[dict[str, Any]], told: str
) -> None:
    for index, options in enumerate(runs_of_one_setting):
        write_run(tmp_path / str(index), **options)
    summary = tmp_path / "0" / "summary.json"
    summary.write_text(re.sub(r'"torch": "[^"]+"', '"torch": "0.1"', summary.read_text()))
    text = tables_of(tmp_path).read_text(encoding="utf-8")
    assert told in text
    assert told.partition(":")[0] not in page.read_text(encoding="utf-8")
    assert re.search(r"\*\*Runs of different versions\*\*: .*torch 0\.1 and ", text)


def test_the_page_says_chance_who_is_near_it_and_how_clients_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for strategy, percent in (("fedavg", 70.0), ("collapsed", 22.0)):
        folder = write_run(tmp_path / strategy, strategy, 0, percent)
        folder.write_holdings(Holdings([ClientHolding("mnist", [5] * 10, [0] * 10)]))
        client = OmegaConf.create({"client": {"epochs": 5, "batch_size": 64}})
        configuration = OmegaConf.merge(OmegaConf.load(folder.config_file), client)
        folder.write_config(OmegaConf.to_yaml(configuration))
    page = compare([tmp_path])
    text = page.read_text(encoding="utf-8")
    assert "Local training: 5 epochs, batches of 64. Each client trains on 50 examples." in text
    assert "Chance: 10.0 % (10 classes)." in text
    assert "**Near chance**, a mean accuracy of at most 15.0 %: collapsed. " in text
    assert "| collapsed (near chance) | 1 | 22.00 | 2.00 | 12.00 |" in text
    assert "| fedavg | 1 | **70.00** | **50.00** | **60.00** | **14.14** |" in text
    assert {row["chance"] for row in rows(page.parent / "comparison.csv")} == {"10.0"}
    assert "chance: 10.0 %" in capsys.readouterr().out


def test_clients_own_tests_have_tables_of_their_own(tmp_path: Path) -> None:
    for name in ("fedavg", "fedpw"):
        write_run(tmp_path / name, name, domains=["cifar10"], tested_clients=True)
    page = tables_of(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "### Global model on the test set, last round" in text
    # The runs have three rounds, fewer than the five that are averaged by default.
    assert "### Global model on every client's own test data, mean of the last 3 rounds" in text
    assert "last 5" not in text
    row = rows(page.parent / "comparison.csv")[1]
    assert float(row["last_round.clients.mean"]) == pytest.approx(52.5)
    assert float(row["last_round.clients.worst_10"]) == pytest.approx(35)
    assert float(row["last_round.clients.angle"]) == pytest.approx(
        math.degrees(math.atan(17.5 / 52.5)), abs=1e-6
    )
    assert "last_round.domains.std" not in row


def test_one_run_s_comparison_lies_beside_it_and_can_be_made_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "a", "a|b *c* <script> _d_")
    page = compare([run.path])
    assert page == tmp_path / "runs" / "comparison" / "comparison.md"
    # Names cannot break its tables.
    assert r"| a\|b \*c\* \<script> \_d\_ | 1 |" in page.read_text(encoding="utf-8")
    before = {path: path.read_bytes() for path in page.parent.iterdir()}
    compare([run.path])
    assert {path: path.read_bytes() for path in page.parent.iterdir()} == before


def test_plots_that_only_an_earlier_comparison_had_are_removed_and_no_others(
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path / "a").path
    write_run(tmp_path / "b", domains=["usps"])
    page = compare([tmp_path])
    one, two = (folder for folder in page.parent.iterdir() if folder.is_dir())
    others = (one / "weights_of_somebody_else.png", run / "weights.png")
    for other in others:
        other.write_bytes(b"")
    page.write_text(page.read_text(encoding="utf-8") + "\n![a run's](../a/weights.png)\n")
    compare([tmp_path / "b"], output=page.parent)
    assert {path.name for path in page.parent.glob("*.png")} == {
        *("curves.png", "rounds_to_target.png", "weights.png")
    }
    assert list(one.iterdir()) == [others[0]]
    assert not two.exists()
    assert others[1].exists()


@pytest.mark.parametrize(
    ("option", "value", "asked"),
    [
        *(
            ("--target", value, "choose a percentage above 0 and up to 100, not")
            for value in ("high", "nan", "0", "101")
        ),
        ("--last", "0", "choose a whole number of rounds from 1, not 0"),
        ("--last", "1.5", "choose a whole number of rounds from 1, not 1.5"),
    ],
)
def test_a_number_that_is_none_is_refused_with_what_is_asked_for(
    option: str, value: str, asked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), option, value])
    assert ended.value.code == 2
    assert asked in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], ["there is no folder nothing"]),
        (["empty"], ["there is no run in empty"]),
        (["file"], ["/file cannot be read as a tar file of runs"]),
        (
            ["unfinished"],
            ["nothing to compare", "stopped: unfinished (the last recorded round is 3)"],
        ),
        (["runs", "--only", "c*"], ["no run with a name like c* in runs"]),
        (["runs", "--against", "fedsgd"], ["no run is of the method 'fedsgd'", "fedavg, fedpw"]),
        (["runs", "--output", "file"], ["choose another folder with --output"]),
        (["runs", "--tensorboard", "events"], ['pip install "fedpw-flwr[tensorboard]"']),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_to_do(
    runs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    told: list[str],
) -> None:
    monkeypatch.chdir(runs.parent)
    Path("empty").mkdir()
    Path("file").write_text("")
    write_run(Path("unfinished", "stopped"), finished=False)
    # None: an import of it fails, as where it is not installed.
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [part for part in told if part not in printed.err] == []
    assert not any(runs.parent.rglob("comparison"))


def test_scalars_of_a_round_are_its_finite_figures_losses_and_weights(tmp_path: Path) -> None:
    record = write_run(tmp_path / "a", tested_clients=True).read_rounds()[-1]
    scalars = scalars_of_round(record)
    expected = {"accuracy/svhn": 0.5, "mean_accuracy": 0.6, "clients/worst_10": 0.35}
    # Shares, where the weights also say how far the server steps.
    expected |= {
        "loss/mnist": 1.5,
        "train/train_loss": 1.0,
        "weight/client_0": 0.6,
        "weight/client_1": 0.4,
    }
    assert {tag: scalars[tag] for tag in expected} == pytest.approx(expected)
    unknown = replace(record, accuracy={"mnist": math.nan, "svhn": 0.5})
    assert scalars.keys() - scalars_of_round(unknown).keys() == {
        *("accuracy/mnist", "mean_accuracy", "std_accuracy", "worst_accuracy")
    }


def test_events_hold_every_round_of_every_run(runs: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
        event_accumulator,
    )

    # Twice, and packed: old events must be replaced, or TensorBoard would draw both.
    compare([runs], tensorboard=tmp_path / "events")
    pack_runs(tmp_path / "kept.tar.xz", [run.folder for run in find_runs([runs])[0]])
    settings, _ = group_runs(find_runs([tmp_path / "kept.tar.xz"])[0])
    write_events(tmp_path / "events", settings)
    folders = sorted(path.name for path in (tmp_path / "events").iterdir())
    assert folders == ["fedavg_seed0", "fedavg_seed1", "fedpw_seed0", "fedpw_seed1"]
    events = event_accumulator.EventAccumulator(str(tmp_path / "events" / "fedpw_seed1"))
    events.Reload()
    mean = events.Scalars("mean_accuracy")
    assert [event.step for event in mean] == [0, 1, 2, 3]
    assert mean[-1].value == pytest.approx(0.67)
    assert mean[-1].wall_time - mean[0].wall_time == pytest.approx(6.0, abs=1e-3)
    weights = events.Scalars("weight/client_0")
    assert [event.step for event in weights] == [1, 2, 3]


def test_the_page_is_there_as_one_file_for_a_browser(runs: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    write_run(runs / hostile).mark_failed("finished:failed", f"ValueError: {hostile}")
    page = compare([runs])
    opened = shown(page.with_suffix(".html"))
    assert opened.console == []
    assert f"ValueError: {hostile}" in opened.text
    assert opened.elements.count("img") == len(plots_of_page(page)) > 2
    # The figures of the last round.
    for figure in ("70.50 ± 0.71", "75.50 ± 2.12", "55.50 ± 2.12"):
        assert figure in page.read_text(encoding="utf-8")
        assert figure in opened.text
    # All that it shows is in it.
    html = page.with_suffix(".html").read_text(encoding="utf-8")
    assert set(re.findall(r'<img src="([^,"]*)', html)) == {"data:image/png;base64"}
