"""Ray for one command: started or joined, and gone when the command is.

The kernel ends Ray's processes with the thread that started them, however that ends, so a thread of
its own holds Ray from start to stop, while the command imports and prepares beside it.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedpw_flwr.lab.config.configuration import ConfigurationError, RuntimeSettings

# Ray puts sockets of about 65 characters below its folder, and the system allows 107 in all.
_LONGEST_FOLDER = 30
_PREFIX, _LOCK = "fedpw-", "in-use"
_ANSWER_SECONDS = 10.0


def start_ray(runtime: RuntimeSettings, modules: Sequence[str]) -> FileLock | None:
    """Start a Ray of this process's own, or join the cluster that `runtime` names.

    A cluster's machines get `modules`, files and folders to import from. Returns what holds the
    folder of an own Ray: `stop_ray` removes it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A client to which no GPU was given does not see one.
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"
    warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
    # Whoever asks for something when Ray is gone again must not start another.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    settings = {
        "worker_niceness": runtime.niceness,
        # All workers are actors; processes started in advance would only wait.
        "enable_worker_prestart": 0,
        "prestart_worker_first_driver": 0,
    }
    if runtime.ray_address is None:
        # On one machine, who does not answer is gone: Ray's processes wait a minute for it.
        settings["gcs_rpc_server_reconnect_timeout_s"] = 10
    os.environ.update({f"RAY_{name}": str(value) for name, value in settings.items()})
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if runtime.ray_address is not None:
        environment = {"py_modules": list(modules)}
        ray.init(address=runtime.ray_address, runtime_env=environment, **quiet)
        return None
    # On a machine smaller than one client, that client has to make do with what there is.
    cpus = max(usable_cpus(runtime), runtime.cpus_per_client)
    held = _own_folder()
    folder = str(Path(held.lock_file).parent)
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=folder, **quiet)
    return held


def stop_ray(held: FileLock | None) -> None:
    """Leave the cluster, or end the own Ray with all its processes and files."""
    import ray

    ray.shutdown()
    if held is not None:
        shutil.rmtree(Path(held.lock_file).parent, ignore_errors=True)
        held.release()


def usable_cpus(runtime: RuntimeSettings) -> int:
    """Return the cores that all clients of an own Ray may take: the machine's, or container's."""
    # A third of a second, which nothing that only imports this module should pay.
    from joblib import cpu_count  # type: ignore[import-untyped]

    return runtime.total_cpus or int(cpu_count())


def room_for_clients(runtime: RuntimeSettings) -> int:
    """Return for how many clients at a time the machines of the started Ray have room.

    ConfigurationError if no machine has room for one.
    """
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    room = 0
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    for resources in machines:
        fits = int(resources.get("CPU", 0) // runtime.cpus_per_client)
        if runtime.gpus_per_client > 0:
            fits = min(fits, int(resources.get("GPU", 0) / runtime.gpus_per_client + 1e-9))
        room += fits
    if room == 0:
        has = "; ".join(f"{r.get('CPU', 0):g} CPUs, {r.get('GPU', 0):g} GPUs" for r in machines)
        raise ConfigurationError(
            f"no machine has room for one client of runtime.cpus_per_client="
            f"{runtime.cpus_per_client} and runtime.gpus_per_client={runtime.gpus_per_client:g}: "
            f"Ray found {has}. Lower these, or use larger machines"
        )
    return room


def check_cluster_answers(address: str) -> None:
    """Raise ConfigurationError if no cluster listens there: Ray itself would wait for ever."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"no Ray cluster answers at runtime.ray_address={address} ({error}): start one with "
            "`ray start --head`, which prints its address, or correct the address"
        ) from error


def _own_folder() -> FileLock:
    """Make a folder short enough for Ray's sockets, held by a lock; remove what was left behind.

    A killed command cannot remove its folder: the next one does, as nobody holds it any more.
    """
    base = Path(tempfile.gettempdir()).resolve()
    if len(str(base / f"{_PREFIX}12345678")) > _LONGEST_FOLDER:
        base = Path("/tmp")
    for left in base.glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            if left.lstat().st_uid != os.getuid():
                continue
            with FileLock(left, blocking=False):
                shutil.rmtree(left.parent, ignore_errors=True)
        except (Timeout, OSError):
            continue
    held = FileLock(Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base), _LOCK), thread_local=False)
    held.acquire()
    return held
