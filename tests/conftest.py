"""What tests of several folders need: an identity, one thread, and Flower's log."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture(autouse=True, scope="session")
def _task_identity() -> Iterator[None]:
    before = {name: TaskIdentity.__dict__[name] for name in ("_run_id", "_task_id", "_node_id")}
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    yield
    for name, value in before.items():
        setattr(TaskIdentity, name, value)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small networks are slower on several threads, the more so beside another worker's tests."""
    torch.set_num_threads(1)


@pytest.fixture
def flower_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """`caplog` that hears Flower's logger, from INFO on, whether or not that passes it on."""
    logger = logging.getLogger("flwr")
    passes_on, logger.propagate = logger.propagate, False
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger="flwr")
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.propagate = passes_on
