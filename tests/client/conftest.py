"""What every test of the client package needs: an identity to write messages with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

# Modules that tests share, here and with the strategy's, which pytest's importlib mode hides.
HERE = Path(__file__).parent
sys.path.extend([str(HERE), str(HERE.parent / "strategy")])


@pytest.fixture(autouse=True, scope="session")
def _task_identity() -> Iterator[None]:
    before = {name: TaskIdentity.__dict__[name] for name in ("_run_id", "_task_id", "_node_id")}
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    yield
    for name, value in before.items():
        setattr(TaskIdentity, name, value)
