from __future__ import annotations

import pytest

from fedpw_flwr.lab.data.embedded_digits import embedded_digits
from fedpw_flwr.lab.data.examples import DomainCollection


@pytest.fixture(scope="session")
def digits() -> DomainCollection:
    return embedded_digits()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPW_CACHE_DIR", str(tmp_path_factory.mktemp("cache") / "fedpw"))
