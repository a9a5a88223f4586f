"""A run on a Ray cluster brings its code and data there, and takes the cluster as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedpw_flwr.lab.config.configuration import (
    PREPARED_VARIABLE,
    ConfigurationError,
    RuntimeSettings,
)
from fedpw_flwr.lab.launch.ray_cluster import LARGEST_CARRIED, leave_behind_if_large
from fedpw_flwr.lab.launch.superlink import private_environment

ADDRESS = "192.168.0.10:6379"


def test_workers_find_app_and_data_in_their_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    app = tmp_path / "app"
    environment = private_environment(tmp_path, app, "x", ADDRESS)
    assert environment["RAY_ADDRESS"] == ADDRESS
    assert "RAY_TMPDIR" not in environment
    carried = json.loads(environment["RAY_JOB_CONFIG_JSON_ENV_VAR"])["runtime_env"]
    assert carried["working_dir"] == str(app)
    assert app / carried["env_vars"][PREPARED_VARIABLE] == Path(environment[PREPARED_VARIABLE])


def test_large_data_are_left_behind_and_small_ones_travel(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    for file, size in ((small, LARGEST_CARRIED), (large, LARGEST_CARRIED + 1)):
        with file.open("wb") as stream:
            stream.truncate(size)
        leave_behind_if_large(file)
    leave_behind_if_large(tmp_path / "never written")
    assert small.exists()
    assert not large.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ray_address": "auto"}, "is not host and port of a Ray cluster"),
        ({"ray_address": "192.168.0.10"}, "is not host and port of a Ray cluster"),
        ({"ray_address": "ray://192.168.0.10:10001"}, "is not host and port of a Ray cluster"),
        ({"ray_address": ADDRESS, "total_cpus": 2}, "ray start --num-cpus"),
    ],
)
def test_an_address_or_a_size_that_no_cluster_can_take_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RuntimeSettings(**settings)
