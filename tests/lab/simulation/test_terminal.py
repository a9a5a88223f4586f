"""No line is lost and no command crashes where the terminal's encoding lacks a sign."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedpw_flwr.lab.runs.records import RoundRecord, RunSummary
from fedpw_flwr.lab.runs.run_folder import RunFolder

COMMANDS = Path(sys.executable).parent
OTHER_TERMINALS = [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
]

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
    from fedpw_flwr.lab.models.cnn import SmallCNN

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


def _typed(words: list[str], terminal: dict[str, str]) -> tuple[str, str]:
    done = subprocess.run(
        [COMMANDS / words[0], *words[1:]],
        env=os.environ | terminal,
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode("latin-1"), done.stderr.decode("latin-1")


@pytest.mark.parametrize("terminal", OTHER_TERMINALS, ids=str)
def test_tables_and_configurations_are_printed_to_any_terminal(
    run: Path, terminal: dict[str, str]
) -> None:
    printed, said = _typed(["fedpw-compare", str(run), "--output", str(run / "c")], terminal)
    assert "fairer" in printed
    assert "comparison.md" in printed
    assert "UnicodeEncodeError" not in said
    assert "größer→fairer" in (run / "c" / "comparison.md").read_text(encoding="utf-8")
    printed, _ = _typed(["fedpw-evaluate", str(run)], terminal)
    assert "75.00" in printed
    printed, _ = _typed(["fedpw", 'strategy.name="größer→fairer"', "--cfg", "job"], terminal)
    assert "fairer" in printed
    assert "rounds: 30" in printed


def test_json_is_whole_on_any_terminal(run: Path) -> None:
    printed, _ = _typed(["fedpw-evaluate", str(run), "--json"], OTHER_TERMINALS[0])
    assert json.loads(printed)["recorded_accuracy"] == {"scans": 0.75, "fonts": 0.5}
