"""Every benchmark runs, and the runner keeps their tables."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import run
from report import Table

FOLDER = Path(run.__file__).parent
WRITTEN = [name for name in run.ALL if (FOLDER / f"{name}.py").is_file()]


def test_a_table_prints_its_title_its_note_and_its_figures() -> None:
    table = Table("Sizes", ("what", "bytes"), (("a|b", "1,000"), ("c", "2.5")), "Of a message.")
    assert table.markdown() == (
        "### Sizes\n\nOf a message.\n\n| what | bytes |\n|---|--:|\n| a\\|b | 1,000 |\n| c | 2.5 |"
    )


def test_a_row_with_a_missing_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="'Sizes' has 2 columns, a row has 1 cells"):
        Table("Sizes", ("what", "bytes"), (("a",),))


def test_every_script_with_tables_is_on_the_runners_list() -> None:
    scripts = {script.stem: script.read_text() for script in FOLDER.glob("*.py")}
    assert {name for name, text in scripts.items() if "\ndef tables(" in text} == set(WRITTEN)


# The runs of client_accuracy, which take minutes, are those of the client loop's own test.
@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "client_accuracy"])
def test_a_benchmark_prints_tables_with_figures(name: str) -> None:
    process = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), "--tiny"],
        cwd=FOLDER.parent,
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    titles = re.findall(r"^### .+$", process.stdout, flags=re.MULTILINE)
    rules = re.findall(r"^\|(?:---|--:)(?:\|(?:---|--:))*\|$", process.stdout, flags=re.MULTILINE)
    assert titles
    assert len(rules) == len(titles)
    assert any("--:" in rule for rule in rules)
    assert "nan" not in process.stdout.lower().split()


def test_the_runner_replaces_one_section_and_keeps_the_others(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    run.write_section(results, "attacks", "### old attacks", 1.0)
    run.write_section(results, "server_step", "### server step", 2.0)
    run.write_section(results, "attacks", "### new attacks", 3.0)
    text = results.read_text()
    assert "### old attacks" not in text
    assert text.index("### server step") < text.index("### new attacks")
    assert set(run.read_sections(results)) == {"machine", "server_step", "attacks"}
    for line in ("| CPU | ", "| cores | ", "| memory | ", "| torch | ", "| ray | ", "| commit | "):
        assert text.count(line) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["RESULTS.md"]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runner's file, in a folder where benchmarks may be written."""
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    return tmp_path / "RESULTS.md"


def run_benchmark(monkeypatch: pytest.MonkeyPatch, name: str, results: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", name, "--tiny", f"--output={results}"])
    run.main()


def test_the_runner_writes_what_the_benchmark_printed(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = results.with_name("message_sizes.py")
    script.write_text("import sys; print('### sizes', *sys.argv[1:])")
    run_benchmark(monkeypatch, "message_sizes", results)
    section = run.read_sections(results)["message_sizes"]
    assert section.startswith("## message_sizes\n\nMeasured 2")
    assert section.endswith("\n\n### sizes --tiny")


def test_an_unknown_benchmark_is_refused_with_the_names_there_are(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_benchmark(monkeypatch, "serverstep", results)
    assert "no benchmark 'serverstep'; choose among server_step, client_loop" in (
        capsys.readouterr().err
    )


def test_a_benchmark_that_fails_keeps_its_old_section(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_section(results, "attacks", "### as it was", 1.0)
    results.with_name("attacks.py").write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match="failed, with their sections as they were: attacks"):
        run_benchmark(monkeypatch, "attacks", results)
    assert "### as it was" in results.read_text()
