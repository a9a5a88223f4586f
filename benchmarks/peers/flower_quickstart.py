"""Flower: `flwr run` of an app like its PyTorch quickstart's, with the simulation engine.

pip install "flwr[simulation]" torch numpy

This script only gives the command what a fresh user's shell would have: an empty Flower home, free
ports and a Ray of its own. Nothing is installed before the run, which Flower does otherwise. What
Flower prints comes late, so the app writes its rounds to the file rounds.txt of the working folder.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

PEERS = Path(__file__).resolve().parent
APP = PEERS / "flower_app"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    here = Path.cwd()
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "FLWR_HOME": str(here / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_ADDRESS": "local",
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        # Where Ray's workers find the ClientApp, and everyone the workload.
        "PYTHONPATH": f"{APP}{os.pathsep}{PEERS}",
    }
    words = [
        *("flwr", "run", str(APP), "--stream"),
        *("--federation-config", "num-supernodes=10 client-resources-num-cpus=1"),
        "--run-config",
        f'rounds={options.rounds} data="{options.data.resolve()}" output="{here / "rounds.txt"}"',
    ]
    os.execve(binaries / "flwr", words, environment)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
