"""Sweeps: a run is done when its settings are, whatever its folder is called."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig
from rich.console import Console

from fedpw_flwr.lab.command import main
from fedpw_flwr.lab.config.configuration import compose_configuration, resolved_yaml
from fedpw_flwr.lab.experiment import build_data
from fedpw_flwr.lab.runs.holdings import Holdings
from fedpw_flwr.lab.runs.run_folder import RunFolder
from fedpw_flwr.lab.sweep import Sweep, results_fingerprint, run_name


def _configuration(overrides: str = "") -> DictConfig:
    return compose_configuration(overrides=overrides)


def _sweep(folder: Path) -> Sweep:
    return Sweep(folder, Console(record=True, width=200), 2)


def _finish(folder: Path, configuration: DictConfig) -> None:
    """Leave what a finished run leaves, as far as a sweep looks at it."""
    run = RunFolder(folder)
    run.start("rounds: 3\n")
    run.write_config(resolved_yaml(configuration))
    (folder / "summary.json").write_text("{}")


@pytest.mark.parametrize(
    ("overrides", "is_another"),
    [
        ("seed=1", True),
        ("rounds=31", True),
        ("strategy=fedavg", True),
        ("strategy.beta=0.2", True),
        ("client.epochs=3", True),
        ("runtime.total_cpus=1", False),
        ("runtime.profile=true", False),
        ("strategy.wait_for_clients=5", False),
        # However a number is written.
        ("strategy.max_weight=3", False),
        # Which end a run has, where it may have another than its last round.
        ("stop.patience=5", True),
        ("stop.min_rounds=5", False),
        ("tracking=tensorboard", False),
    ],
)
def test_a_run_is_another_where_something_changes_its_results(
    overrides: str, is_another: bool
) -> None:
    plain, changed = _configuration(), _configuration(overrides)
    assert (results_fingerprint(plain) != results_fingerprint(changed)) is is_another
    assert (run_name(plain) != run_name(changed)) is is_another


def test_archives_in_place_of_a_full_set_are_another_run_wherever_they_lie() -> None:
    full, here, there = (
        results_fingerprint(_configuration(f"dataset=digits dataset.archives_folder={folder}"))
        for folder in ("null", "here", "there")
    )
    assert full != here == there


def test_a_finished_run_is_found_under_any_name(tmp_path: Path) -> None:
    configuration = _configuration("rounds=3 strategy.avg_drop_rate=0.25 seed=3")
    _finish(tmp_path / "of last week" / "called otherwise", configuration)
    sweep, longer = _sweep(tmp_path), _configuration("rounds=4")
    found = sweep.finished(configuration)
    assert found == tmp_path / "of last week" / "called otherwise"
    assert sweep.finished(longer) is None
    # Another sweep ends it meanwhile.
    _finish(tmp_path / run_name(longer), longer)
    assert sweep.finished(longer) == tmp_path / run_name(longer)


def test_a_folder_that_is_no_run_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "summary.json").write_text("{}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("{}")
    (tmp_path / "broken" / "config.yaml").write_text("a: [1")
    assert _sweep(tmp_path).finished(_configuration()) is None


def test_a_run_that_failed_after_its_summary_is_not_finished(tmp_path: Path) -> None:
    configuration = _configuration("rounds=3")
    _finish(tmp_path / run_name(configuration), configuration)
    RunFolder(tmp_path / run_name(configuration)).mark_failed("finished:failed", "disk full")
    assert _sweep(tmp_path).finished(configuration) is None


def test_a_run_that_was_made_longer_is_another_and_keeps_its_folder(tmp_path: Path) -> None:
    short, long = _configuration("rounds=3"), _configuration("rounds=9")
    _finish(tmp_path / run_name(short), long)
    sweep = _sweep(tmp_path)
    assert sweep.finished(short) is None
    assert sweep.finished(long) == tmp_path / run_name(short)
    with sweep.claim(short) as folder:
        assert folder is not None
        assert folder.path == tmp_path / f"{run_name(short)}_2"


def test_one_run_is_claimed_by_one_sweep_at_a_time(tmp_path: Path) -> None:
    configuration = _configuration()
    with _sweep(tmp_path).claim(configuration) as first:
        assert first is not None
        with _sweep(tmp_path).claim(configuration) as second:
            assert second is None
        with _sweep(tmp_path).claim(_configuration("seed=1")) as other:
            assert other is not None
    with _sweep(tmp_path).claim(configuration) as again:
        assert again is not None


def test_a_run_that_is_done_need_not_be_able_to_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    # The command sets it for itself, and here it must not stay.
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.chdir(tmp_path)
    for name in ("fedpw", "fedpw_server"):
        done = _configuration(f"strategy={name} seed=4 rounds=2")
        _finish(tmp_path / run_name(done), done)
    on_gpu = ["rounds=2", "runtime.gpus_per_client=0.25", "hydra.sweep.dir=."]
    words = ["-m", "strategy=glob([fedpw,fedpw_s*])", "seed=4,9", *on_gpu]
    monkeypatch.setattr("sys.argv", ["fedpw", *words])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    last = "seed=9 rounds=2 runtime.gpus_per_client=0.25"
    assert f"strategy=fedpw {last}; strategy=fedpw_server {last}: runtime.gpus_per_client" in said
    assert "seed=4" not in said


def test_a_sweep_says_how_far_it_is_and_what_failed(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, Console(record=True, width=200), 4)
    (tmp_path / "one").mkdir()
    sweep.announce("seed5")
    sweep.announce("seed6")
    sweep.ended(tmp_path / "one", "done", 60.0)
    sweep.ended(tmp_path / "two", "failed", 3.0)
    sweep.announce("seed7")
    said = sweep.console.export_text()
    assert "seed5: run 1 of 4\n" in said
    assert "seed7: run 3 of 4, 1 failed, about 0:00:00 left" in said
    assert sweep.standing() == "1 of 4 runs done, 1 failed, about 0:00:00 left"
    sweep.print_endings()
    table = sweep.console.export_text()
    assert "failed" in table
    assert (sweep.runs(), sweep.count("failed", "done")) == ([tmp_path / "one"], 2)


def test_a_run_on_other_pictures_is_another_and_keeps_its_folder(tmp_path: Path) -> None:
    configuration = _configuration("rounds=3")
    place = tmp_path / run_name(configuration)
    _finish(place, configuration)
    RunFolder(place).write_holdings(Holdings([], data_digest="of files that lay there before"))
    sweep = _sweep(tmp_path)
    assert sweep.finished(configuration) is None
    with sweep.claim(configuration) as folder:
        assert folder is not None
        assert folder.path == tmp_path / f"{run_name(configuration)}_2"
    same = build_data(configuration).digest()
    RunFolder(place).write_holdings(Holdings([], data_digest=same))
    assert sweep.finished(configuration) == place


def test_what_another_sweep_was_running_is_looked_at_again_at_the_end(tmp_path: Path) -> None:
    first, second = _configuration("rounds=3"), _configuration("rounds=3 seed=1")
    sweep = _sweep(tmp_path)
    for configuration in (first, second):
        sweep.ended(tmp_path / run_name(configuration), "run by another sweep")
    _finish(tmp_path / run_name(first), first)
    sweep.look_again()
    assert (sweep.count("done before"), sweep.count("run by another sweep")) == (1, 1)


def test_a_sweep_has_a_comparison_of_its_own_whatever_the_order_of_its_runs(tmp_path: Path) -> None:
    one, other, third = (_sweep(tmp_path) for _ in range(3))
    for place in (tmp_path / "a", tmp_path / "b"):
        one.ended(place, "done")
    for place in (tmp_path / "b", tmp_path / "a"):
        other.ended(place, "failed")
    third.ended(tmp_path / "a", "done")
    assert one.comparison == other.comparison != third.comparison
    assert one.comparison.parent == tmp_path
