"""The display says how far runs are, and who is missing in a round."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedpw_flwr.lab.runs.holdings import ClientHolding, Holdings
from fedpw_flwr.lab.runs.records import RoundRecord
from fedpw_flwr.lab.runs.run_folder import RunFolder
from fedpw_flwr.lab.simulation.progress import Display, RunProgress
from fedpw_flwr.wire.timings import CLIENT_PHASES, SERVER_PHASES

NOWHERE = Path("no such folder")


def _record(number: int, **changes: Any) -> RoundRecord:
    figures = {"accuracy": {"scans": 0.91, "fonts": 0.62}, "loss": {"scans": 0.4, "fonts": 1.3}}
    return RoundRecord.from_json({"round": number, "seconds": 2.1, **figures} | changes)


def _profile(train: float = 1.0) -> dict[str, Any]:
    """Two clients that train at the same time, and a server that aggregates for half a second."""
    lists = {phase: [0.0, 0.0] for phase in CLIENT_PHASES} | {"train": [train, train]}
    return {
        "server": dict.fromkeys(SERVER_PHASES, 0.0) | {"clients": train, "aggregate": 0.5},
        "clients": {"id": [0, 1], "worker": [0, 1], "waiting": [0.0, 0.0], **lists},
    }


def _shown(
    rounds: int, *records: RoundRecord, terminal: bool = False, folder: Path = NOWHERE
) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None)
    with Display(console) as display, RunProgress(display, RunFolder(folder), rounds) as progress:
        for record in records:
            progress.show(record)
    return stream.getvalue()


def test_a_pipe_gets_one_plain_line_a_round() -> None:
    where, *lines = _shown(2, _record(0, seconds=None), _record(1), _record(2)).splitlines()
    assert where == f"in a browser: {NOWHERE / 'report.html'}"
    assert len(lines) == 3
    assert lines[1].startswith("round 1/2  mean 76.5 %  spread 20.5  worst 62.0 % (fonts)  2.1 s")
    assert "left" in lines[1]
    assert "\x1b" not in "".join(lines)


def test_a_terminal_gets_a_bar_with_the_same_figures() -> None:
    shown = _shown(4, _record(0), _record(1), terminal=True)
    for expected in ("1/4", "mean 76.5 %", "spread 20.5", "worst 62.0 % (fonts)", "left"):
        assert expected in shown


def test_with_one_domain_the_clients_fare_is_shown_in_place_of_a_spread() -> None:
    one = {"accuracy": {"cifar10": 0.4}}
    records = _record(1, **one, client_accuracy=[0.5, 0.3, 0.1]), _record(2, **one)
    _, with_clients, without = _shown(2, *records).splitlines()
    assert with_clients.startswith(
        "round 1/2  test set 40.0 %  clients: mean 30.0 %  spread 20.0  worst 10.0 %  2.1 s"
    )
    assert without.startswith("round 2/2  test set 40.0 %  2.1 s")


def test_quarantined_replies_are_a_warning() -> None:
    records = [_record(number, quarantined=count) for number, count in ((1, 1), (2, 0), (3, 2))]
    lines = _shown(3, *records).splitlines()
    warnings = [line for line in lines if line.startswith("warning")]
    assert len(warnings) == 2
    assert "round 1 left out 1 reply " in warnings[0]
    assert "round 3 left out 2 replies " in warnings[1]


def test_clients_without_data_are_named_when_there_are_more_of_them() -> None:
    rounds = [_record(number, empty=empty) for number, empty in enumerate([0, 1, 1, 3, 2])]
    said = [line for line in _shown(5, _record(0), *rounds).splitlines() if "without data" in line]
    assert said == [
        "round 1 left out 1 client without data; flower.log says which",
        "round 3 left out 3 clients without data; flower.log says which",
    ]


def test_clients_with_a_handful_of_pictures_are_a_warning(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.start()
    folder.write_holdings(
        Holdings([ClientHolding("svhn", [1, 0, 1], [0, 0, 0]), ClientHolding("usps", [9] * 3, [])])
    )
    shown = _shown(1, _record(0), _record(1), folder=folder.path)
    warnings = [line for line in shown.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "clients train on fewer examples than there are classes: svhn (2);" in warnings[0]


def test_a_profiled_run_says_at_its_end_where_the_time_went() -> None:
    assert "time went" not in _shown(2, _record(0), _record(1, profile=_profile(train=30.0)))
    profiled = [_record(1, profile=_profile(train=30.0)), _record(2, profile=_profile(train=2.0))]
    for terminal in (False, True):
        shown = _shown(2, *profiled, terminal=terminal)
        assert "a round's time went (round 2, 2.50 s): clients 80 %, aggregate 20 %" in shown
        assert "what 2 workers did meanwhile: train 80 %, idle 20 %" in shown


def test_an_unknown_figure_is_a_dash() -> None:
    unknown = _record(1, accuracy={"scans": None, "fonts": 0.5})
    assert "mean – %  spread –  worst –" in _shown(2, unknown)


def test_a_round_that_was_not_tested_says_so() -> None:
    assert "round 1/2  not tested  2.1 s" in _shown(2, _record(1, accuracy={}, loss={}))


def test_a_phase_is_told_before_the_first_round() -> None:
    stream = io.StringIO()
    display = Display(Console(file=stream))
    with display, RunProgress(display, RunFolder(NOWHERE), 3) as run:
        run.say("starting")
    assert stream.getvalue() == "starting\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_of_several_runs_each_is_shown_by_its_name(terminal: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None)
    with (
        Display(console) as display,
        RunProgress(display, RunFolder(NOWHERE), 2, "fedavg_seed0") as first,
        RunProgress(display, RunFolder(NOWHERE), 2, "fedpw_seed0") as second,
    ):
        display.overall("1 of 4 runs done")
        first.show(_record(1))
        second.show(_record(2))
        if display.bars is not None:
            display.bars.refresh()
    shown = stream.getvalue()
    assert "fedavg_seed0: round 1/2" in shown
    assert "fedpw_seed0: round 2/2" in shown
    assert ("1 of 4 runs done" in shown) == terminal
