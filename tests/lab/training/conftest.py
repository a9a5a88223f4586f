from __future__ import annotations

import pytest

from fedpw_flwr.lab.data.embedded_digits import embedded_digits
from fedpw_flwr.lab.data.examples import DomainCollection


@pytest.fixture(scope="session")
def scans() -> DomainCollection:
    return embedded_digits(["scans"])
