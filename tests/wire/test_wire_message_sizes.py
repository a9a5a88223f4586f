"""The benchmark of message sizes runs, and packed uploads are as small as they have to be."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "message_sizes.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module; what it sets for the whole process is set back."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, TaskIdentity.__dict__[name])
    threads, logger = torch.get_num_threads(), logging.getLogger("flwr")
    level = logger.level
    spec = importlib.util.spec_from_file_location("message_sizes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    torch.set_num_threads(1)
    logger.setLevel(logging.ERROR)
    monkeypatch.setitem(sys.modules, "message_sizes", module)
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)
    logger.setLevel(level)


def test_the_script_prints_a_row_for_every_kind_of_upload(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["message_sizes.py", "--width=2", "--drop-rates=0.5", "--repeats=1"]
    )
    benchmark.main()
    printed = capsys.readouterr().out
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 5 + 2 + 3
    for upload in ("dense", "packed float32", "packed float16", "packed bfloat16"):
        assert sum(row[0] == "| 0.5" and row[2] == upload for row in rows) == 1
    assert "| 1.000 |" in printed


def test_sizes_are_the_same_every_time(benchmark: ModuleType) -> None:
    first, second = (
        benchmark.measure_sizes(benchmark.fedpw(0.3, "packed", "float16"), 2) for _ in range(2)
    )
    assert first == second


def test_packed_uploads_of_the_papers_network_are_as_small_as_promised(
    benchmark: ModuleType,
) -> None:
    plain = benchmark.measure_sizes(FedAvg(fraction_evaluate=0.0), 64)
    float32 = benchmark.measure_sizes(benchmark.fedpw(0.3, "packed"), 64)
    float16 = benchmark.measure_sizes(benchmark.fedpw(0.3, "packed", "float16"), 64)
    assert float32.up <= 0.75 * plain.up
    assert float16.up <= 0.40 * plain.up
    # What consensus costs on the way down: a bit for each entry of 32 bits.
    for sizes in (float32, float16):
        assert plain.down < sizes.down <= 1.035 * plain.down
