"""No line is lost and no command crashes where the terminal's encoding lacks a sign."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpw_flwr.lab.command import main as fedpw
from fedpw_flwr.lab.compare.command import main as compare
from fedpw_flwr.lab.evaluate import main as evaluate
from fedpw_flwr.lab.models.cnn import SmallCNN
from fedpw_flwr.lab.runs.records import RoundRecord, RunSummary
from fedpw_flwr.lab.runs.run_folder import RunFolder

CONFIGURATION = """
seed: 4
rounds: 1
dataset:
  _target_: fedpw_flwr.lab.data.embedded_digits.embedded_digits
  domains: [scans, fonts]
model:
  _target_: fedpw_flwr.lab.models.cnn.SmallCNN
  width: 2
strategy:
  name: größer→fairer
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with signs outside ASCII in its folder and in its method's name."""
    folder = RunFolder(tmp_path_factory.mktemp("terminal") / "läufe → 1")
    folder.start()
    folder.write_config(CONFIGURATION)
    accuracy = {"scans": 0.75, "fonts": 0.5}
    records = [RoundRecord(number, 1.0, accuracy, accuracy) for number in (0, 1)]
    for record in records:
        folder.append_round(record)
    folder.save_model(SmallCNN(10, width=2).state_dict(), metadata={"round": "1"})
    folder.write_summary(
        RunSummary.of_run(
            records, config_text=CONFIGURATION, strategy="größer→fairer", seed=4, data_digest="x"
        )
    )
    return folder.path


def _printed(
    monkeypatch: pytest.MonkeyPatch, main: Callable[[], object], *words: str
) -> tuple[str, str]:
    """Return what a command writes to a terminal that knows ASCII alone."""
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    errors.reconfigure(errors="backslashreplace")
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setattr("sys.stderr", errors)
    monkeypatch.setattr("sys.argv", ["command", *words])
    # The command sets it for itself, and here it must not stay.
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    main()
    written = []
    for stream in (output, errors):
        stream.flush()
        written.append(stream.buffer.getvalue().decode("ascii"))
    return written[0], written[1]


def test_tables_and_configurations_are_printed_to_any_terminal(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed, said = _printed(monkeypatch, compare, str(run), "--output", str(run / "c"))
    assert "fairer" in printed
    assert "comparison.md" in printed
    assert "UnicodeEncodeError" not in said
    assert "größer→fairer" in (run / "c" / "comparison.md").read_text(encoding="utf-8")
    printed, _ = _printed(monkeypatch, evaluate, str(run))
    assert "75.00" in printed
    printed, _ = _printed(monkeypatch, fedpw, 'strategy.name="größer→fairer"', "--cfg", "job")
    assert "fairer" in printed
    assert "rounds: 30" in printed


def test_json_is_whole_on_any_terminal(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed, _ = _printed(monkeypatch, evaluate, str(run), "--json")
    assert json.loads(printed)["recorded_accuracy"] == {"scans": 0.75, "fonts": 0.5}
