"""The display says what the metrics file says, and never gets in the way of a run."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from fedpw_flwr.lab.runs.holdings import ClientHolding, Holdings
from fedpw_flwr.lab.runs.run_folder import RunFolder
from fedpw_flwr.lab.simulation.progress import Display, RoundLines
from fedpw_flwr.wire.timings import CLIENT_PHASES, SERVER_PHASES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def _record(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "round": number,
        "seconds": 2.1,
        "accuracy": {"scans": 0.91, "fonts": 0.62},
        "loss": {"scans": 0.4, "fonts": 1.3},
    } | changes


def _profile(train: float = 1.0) -> dict[str, Any]:
    """Two clients that train at the same time, and a server that aggregates for half a second."""
    lists = {phase: [0.0, 0.0] for phase in CLIENT_PHASES} | {"train": [train, train]}
    return {
        "server": dict.fromkeys(SERVER_PHASES, 0.0) | {"clients": train, "aggregate": 0.5},
        "clients": {"id": [0, 1], "worker": [0, 1], "waiting": [0.0, 0.0], **lists},
    }


def _append(path: Path, *records: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def _shown(path: Path, rounds: int, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None)
    with Display(console) as display, display.run(path, rounds):
        display.update()
    return stream.getvalue()


def test_a_pipe_gets_one_plain_line_a_round(path: Path) -> None:
    _append(path, _record(0, seconds=None), _record(1), _record(2))
    lines = _shown(path, 2).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("round 1/2  mean 76.5 %  spread 20.5  worst 62.0 % (fonts)  2.1 s")
    assert "left" in lines[1]
    assert "\x1b" not in "".join(lines)


def test_a_terminal_gets_a_bar_with_the_same_figures(path: Path) -> None:
    _append(path, _record(0), _record(1))
    shown = _shown(path, 4, terminal=True)
    for expected in ("1/4", "mean 76.5 %", "spread 20.5", "worst 62.0 % (fonts)", "left"):
        assert expected in shown


def test_with_one_domain_the_clients_fare_is_shown_in_place_of_a_spread(path: Path) -> None:
    one = {"accuracy": {"cifar10": 0.4}}
    _append(path, _record(1, **one, client_accuracy=[0.5, 0.3, 0.1]), _record(2, **one))
    with_clients, without = _shown(path, 2).splitlines()
    assert with_clients.startswith(
        "round 1/2  test set 40.0 %  clients: mean 30.0 %  spread 20.0  worst 10.0 %  2.1 s"
    )
    assert without.startswith("round 2/2  test set 40.0 %  2.1 s")


def test_a_half_written_line_is_shown_once_it_is_whole(path: Path) -> None:
    lines = RoundLines(path)
    assert lines.read_new() == []
    whole = json.dumps(_record(1)) + "\n"
    path.write_text(whole[:20])
    assert lines.read_new() == []
    path.write_text(whole + "not json\n[1]\n" + whole[:10])
    assert [record.round for record in lines.read_new()] == [1]
    assert lines.read_new() == []


@example(content=b"", value=float("inf"))
@given(content=st.binary(max_size=200), value=st.one_of(st.none(), st.text(), st.floats()))
def test_no_content_breaks_the_display(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, value: object
) -> None:
    path = tmp_path_factory.mktemp("progress") / "metrics.jsonl"
    odd = dict.fromkeys((*_record(1), "quarantined", "profile", "client_accuracy"), value)
    one_domain = {"accuracy": {"a": 0.5}, "client_accuracy": [value, 0.5, None]}
    half_read = _profile() | {"server": dict.fromkeys(SERVER_PHASES, value)}
    lines = [
        *(json.dumps(odd | {"round": 1}), json.dumps(_record(1, accuracy={"a": value}))),
        json.dumps(_record(3, profile=half_read)),
        json.dumps(_record(2, **one_domain)),
    ]
    path.write_bytes("\n".join(lines).encode() + b"\n" + content)
    _shown(path, 3)
    _shown(path, 3, terminal=True)


def test_quarantined_replies_are_a_warning(path: Path) -> None:
    _append(path, _record(1, quarantined=1), _record(2, quarantined=0), _record(3, quarantined=2))
    warnings = [line for line in _shown(path, 3).splitlines() if line.startswith("warning")]
    assert len(warnings) == 2
    assert "round 1 left out 1 reply " in warnings[0]
    assert "round 3 left out 2 replies " in warnings[1]


def test_clients_without_data_are_named_when_there_are_more_of_them(path: Path) -> None:
    rounds = [_record(number, empty=empty) for number, empty in enumerate([0, 1, 1, 3, 2])]
    _append(path, _record(0), *rounds)
    said = [line for line in _shown(path, 5).splitlines() if "without data" in line]
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
    _append(folder.metrics_file, _record(0), _record(1))
    warnings = [line for line in _shown(folder.metrics_file, 1).splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "clients train on fewer images than there are classes: svhn (2);" in warnings[0]


def test_a_profiled_run_says_at_its_end_where_the_time_went(path: Path) -> None:
    _append(path, _record(0), _record(1, profile=_profile(train=30.0)))
    assert "time went" not in _shown(path, 2)
    _append(path, _record(2, profile=_profile(train=2.0)))
    for terminal in (False, True):
        shown = _shown(path, 2, terminal=terminal)
        assert "a round's time went (round 2, 2.50 s): clients 80 %, aggregate 20 %" in shown
        assert "what 2 workers did meanwhile: train 80 %, idle 20 %" in shown


def test_an_unknown_figure_is_a_dash(path: Path) -> None:
    _append(path, _record(1, accuracy={"scans": None, "fonts": 0.5}))
    assert "mean - %  spread -  worst" in _shown(path, 2)


def test_a_phase_is_told_before_the_first_round(tmp_path: Path) -> None:
    stream = io.StringIO()
    with Display(Console(file=stream)) as display, display.run(tmp_path / "none", 3) as run:
        run.say("starting")
        display.update()
    assert stream.getvalue() == "starting\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_of_several_runs_each_is_shown_by_its_name(tmp_path: Path, terminal: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None)
    paths = [tmp_path / name for name in ("one", "two")]
    with Display(console) as display:
        first = display.run(paths[0], 2, "fedavg_seed0")
        with first, display.run(paths[1], 2, "fedpw_seed0"):
            _append(paths[0], _record(1))
            _append(paths[1], _record(2))
            display.update()
            if display.bars is not None:
                display.bars.refresh()
    shown = stream.getvalue()
    assert "fedavg_seed0: round 1/2" in shown
    assert "fedpw_seed0: round 2/2" in shown
