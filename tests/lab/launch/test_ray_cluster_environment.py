"""A run on a Ray cluster brings its code and data there, and takes the cluster as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedpw_flwr.lab.config.configuration import (
    PREPARED_VARIABLE,
    ConfigurationError,
    RuntimeSettings,
)
from fedpw_flwr.lab.launch.launch import ClientResources
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


def test_the_size_of_a_cluster_is_its_own() -> None:
    words = ClientResources(4, gpus_per_client=0.25, ray_address=ADDRESS).federation_config()
    assert words == ("num-supernodes=4 client-resources-num-cpus=1 client-resources-num-gpus=0.25")


def test_large_data_are_left_behind_and_small_ones_travel(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    for file, size in ((small, LARGEST_CARRIED), (large, LARGEST_CARRIED + 1)):
        with file.open("wb") as stream:
            stream.truncate(size)
        leave_behind_if_large(file)
    leave_behind_if_large(tmp_path / "never written")
    assert small.exists()
    assert not large.exists()


@pytest.mark.parametrize("address", ["auto", "local", "192.168.0.10", "ray://192.168.0.10:10001"])
def test_an_address_that_is_not_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="is not host and port of a Ray cluster"):
        RuntimeSettings(ray_address=address)


def test_a_number_of_processors_is_refused_beside_a_cluster() -> None:
    with pytest.raises(ConfigurationError, match="ray start --num-cpus"):
        RuntimeSettings(ray_address=ADDRESS, total_cpus=2)
