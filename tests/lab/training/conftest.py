from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fedpw_flwr.lab.data.embedded_digits import embedded_digits
from fedpw_flwr.lab.data.examples import DomainCollection


@pytest.fixture(scope="session")
def scans() -> DomainCollection:
    return embedded_digits(["scans"])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks are slower on several threads, the more so beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
