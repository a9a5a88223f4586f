"""What a run needs to have its clients on a Ray cluster: the app and the data on every machine.

The workers of a cluster are started by its machines, in their environment and with their files.
Ray carries to them what it is told to: here the staged app, whose version, configuration and
prepared data are then the same everywhere.
"""

import json
import socket
from pathlib import Path

from fedpw_flwr.lab.config.configuration import PREPARED_VARIABLE, ConfigurationError

PREPARED_FILE = "prepared.safetensors"

LARGEST_CARRIED = 100 * 2**20
"""Bytes of prepared data that travel with the app. Larger data each machine reads from its own."""

_ANSWER_SECONDS = 10.0


def cluster_environment(address: str, app_folder: Path) -> dict[str, str]:
    """Return the variables that let a process, Flower's, join a cluster and carry the app there.

    The staged app becomes the working folder of the workers, on whatever machine.
    """
    # Relative for the workers: each machine has its copy of the app in a folder of its own.
    workers = {"working_dir": str(app_folder), "env_vars": {PREPARED_VARIABLE: PREPARED_FILE}}
    return {
        PREPARED_VARIABLE: str(app_folder / PREPARED_FILE),
        "RAY_ADDRESS": address,
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": workers}),
    }


def check_cluster_answers(address: str) -> None:
    """Check that something listens where the cluster should be: Ray itself would wait for ever.

    Raises
    ------
    ConfigurationError
        If nothing does.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"no Ray cluster answers at runtime.ray_address={address} ({error}): start one with "
            "`ray start --head`, which prints its address, or correct the address"
        ) from error


def leave_behind_if_large(prepared: Path) -> None:
    """Remove prepared data that are too large to be carried; the processes then read their own."""
    if prepared.is_file() and prepared.stat().st_size > LARGEST_CARRIED:
        prepared.unlink()
