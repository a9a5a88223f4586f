"""`fedpw-doctor` on machines that lack something, which each test really takes away."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest
from support.commands import COMMANDS, typed

# A folder in which nobody can make a file, not even root.
NOWHERE = "/proc/outputs"


def installed(folder: Path, name: str, version: str) -> None:
    """Put another version of a package before the one that is installed."""
    metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def found(text: str) -> dict[str, list[str]]:
    """Sort the lines by their state: ``ok``, ``warn``, ``fail``."""
    lines = [line.split(maxsplit=1) for line in text.splitlines()]
    return {state: [line[1] for line in lines if line[0] == state] for state, _ in lines}


def test_a_machine_that_runs_experiments_passes_and_is_described(tmp_path: Path) -> None:
    free = {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": "0", "no_proxy": "*", "NO_PROXY": "*"}
    lines = found(typed("fedpw-doctor", folder=tmp_path, **free).stdout)
    text = "\n".join(lines["ok"])
    for what in ("flwr 1.", "torch 2.", "cores", f"{tmp_path / 'outputs'}, ", "worker started"):
        assert what in text
    assert "fail" not in lines
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_what_is_broken_is_told_with_what_to_do(tmp_path: Path) -> None:
    installed(tmp_path, "llvmlite", "0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        broken = {
            **{"http_proxy": "http://me:secret@127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""},
            **{"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port, "FEDPW_CACHE_DIR": NOWHERE},
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        done = typed("fedpw-doctor", NOWHERE, folder=tmp_path, status=1, **broken)
    lines = found(done.stdout)
    (failed,) = lines["fail"]
    assert failed.startswith("outputs ")
    assert NOWHERE.rpartition("/")[0] in failed
    assert "hydra.run.dir" in failed
    warned = "\n".join(lines["warn"])
    for what in (
        "numba needs llvmlite",
        f"{port} of flwr run",
        "http_proxy=http://127.0.0.1:9: flwr would look for this machine there: export no_proxy",
        "give another as FEDPW_CACHE_DIR",
    ):
        assert what in warned
    assert "secret" not in done.stdout
    # A run needs neither the port nor a proxy.
    assert "worker started" in "\n".join(lines["ok"])


@pytest.mark.long
def test_a_proxy_that_flower_cannot_use_is_named(tmp_path: Path) -> None:
    socks = {"ALL_PROXY": "socks5h://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    lines = found(typed("fedpw-doctor", folder=tmp_path, **socks).stdout)
    (warned,) = [line for line in lines["warn"] if line.startswith("proxies")]
    assert "all_proxy=socks5h://127.0.0.1:9: " in warned


def test_versions_that_do_not_fit_stop_the_other_checks(tmp_path: Path) -> None:
    installed(tmp_path, "flwr", "1.0.0")
    module = tmp_path / "torchvision.py"
    module.write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = typed("fedpw-doctor", folder=tmp_path, status=1, PYTHONPATH=path)
    failed = "\n".join(found(done.stdout)["fail"])
    assert "fedpw-flwr needs flwr>=1.41, but 1.0.0 is installed: pip install" in failed
    assert "torchvision cannot be imported: RuntimeError: operator torchvision::nms" in failed
    assert "run fedpw-doctor again" in done.stdout
    assert "worker" not in done.stdout


@pytest.mark.long
@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("unshare") is None, reason="mounting takes root"
)
def test_little_shared_memory_and_a_small_disk_are_told(tmp_path: Path) -> None:
    """In mounts of its own: as a container has them that was started without options."""
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    mounts = f"mount -t tmpfs -o size=64m t /dev/shm && mount -t tmpfs -o size=50m t '{outputs}'"
    words = ("--mount", "bash", "-c", f'{mounts} && exec "$0"')
    command = shutil.which("unshare")
    assert command is not None
    done = typed(command, *words, COMMANDS / "fedpw-doctor", folder=tmp_path)
    warned = "\n".join(found(done.stdout)["warn"])
    assert "0.06 GiB are free in /dev/shm" in warned
    assert "--shm-size=" in warned
    assert f"{outputs}, 0.0 GiB free: give another as hydra.run.dir" in warned
