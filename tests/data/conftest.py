from __future__ import annotations

import pytest

from fedpw_flwr.data.embedded_digits import embedded_digits
from fedpw_flwr.data.images import DomainCollection


@pytest.fixture(scope="session")
def digits() -> DomainCollection:
    return embedded_digits()
