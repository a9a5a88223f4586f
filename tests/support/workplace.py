"""A copy of the checkout, in which a page's commands are typed one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copy2, copytree, ignore_patterns

from support.commands import COMMANDS, QUIET, free_ports, marked
from support.pages import PAGES, REPOSITORY, blocks

SHORTLY = """
fedpw() {
    case " $* " in
        *" --help "* | *" --cfg "* | *" -sc "* | *resume=*) command fedpw "$@" ;;
        *) command fedpw "$@" $SHORTER ;;
    esac
}
make() {
    # That is what runs this test.
    test "$1" = test || command make "$@" OVERRIDES="$SHORTER"
}
"""
"""What makes runs shorter by the words in SHORTER."""


@dataclass(frozen=True)
class Workplace:
    """A folder with a copy of the checkout, and the environment of a shell in it."""

    folder: Path
    environment: Mapping[str, str]

    def follow(self, page: str) -> list[str]:
        """Run the blocks of a page one after the other; give what each printed."""
        logs = []
        for code in blocks("bash", [PAGES[page]]):
            logs.append(self.run(code))
            if "flwr run" in code:
                assert self._status_of_last_run() == "finished:completed", logs[-1][-6000:]
        return logs

    def _status_of_last_run(self) -> str:
        """Ask Flower how its last run ended: the exit status of `flwr run` does not tell."""
        deadline = time.monotonic() + 30
        while True:
            listed = json.loads(self.run("flwr list --format json"))
            status: str = max(listed["runs"], key=lambda run: run["pending-at"])["status"]
            if status.startswith("finished") or time.monotonic() > deadline:
                return status
            time.sleep(0.5)

    def run(self, code: str) -> str:
        """Run lines of bash, which have to end well, and give what they print."""
        done = subprocess.run(
            ["bash", "-ec", SHORTLY + code],
            cwd=self.folder,
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout[-4000:]}"
        return done.stdout


@contextmanager
def copied(folder: Path, **variables: str) -> Iterator[Workplace]:
    """Copy the checkout; give a Flower home and port of its own; end the SuperLink after."""
    checkout = folder / "checkout"
    left_out = ignore_patterns("__pycache__", "pictures")
    for name in ("fedpw_flwr", "conf", "docs", "examples"):
        copytree(REPOSITORY / name, checkout / name, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile"):
        copy2(REPOSITORY / name, checkout)
    # As after `make install`, which has nothing left to do here: it would install this copy.
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "bin").symlink_to(COMMANDS)
    (checkout / ".venv" / "installed").touch()
    environment = {name: value for name, value in os.environ.items() if name[:5] != "FLWR_"} | {
        **QUIET,
        "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "home"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_ports(1)),
        "RAY_ADDRESS": "local",
        "SHORTER": "",
        **variables,
    }
    with marked() as mark:
        yield Workplace(checkout, environment | mark)
