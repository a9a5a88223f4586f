"""Run benchmarks and keep their tables in benchmarks/RESULTS.md.

    python benchmarks/run.py                         # all but those that take hours
    python benchmarks/run.py server_step attacks     # replaces these sections, keeps the others

Each benchmark is a script beside this file that prints Markdown, run in a fresh process, so that
the threads, memory and caches of one do not touch the next. A benchmark that fails leaves its old
section as it was, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch

FOLDER = Path(__file__).resolve().parent

BENCHMARKS = (
    *("server_step", "client_loop", "message_sizes"),
    *("many_clients", "attacks", "privacy_cost"),
)
"""Names of the scripts, in the order of their sections."""

ON_REQUEST = ("client_accuracy",)
"""Those that take hours: only where they are named."""

ALL = (*BENCHMARKS, *ON_REQUEST)

BY_HAND = ("peers", "sweeps")
"""Sections of what needs other Pythons or other checkouts: they say what was typed."""

OF_DATA = ("client_loop", "client_accuracy", "many_clients")
"""Those that train on the four domains where there are, else on the embedded digits."""

PACKAGES = ("torch", "numpy", "numba", "flwr", "ray")
NO_GPU = "none: GPU rows were not measured"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ALL)}")
    parser.add_argument("--tiny", action="store_true", help="only show that they run")
    parser.add_argument("--output", type=Path, help="default: RESULTS.md beside this file")
    parser.add_argument("--data", type=Path, help="folder with the archives of the four domains")
    arguments = parser.parse_args()
    if arguments.tiny and arguments.output is None:
        parser.error("--tiny prints no figures worth keeping: say with --output where they may go")
    output = arguments.output or FOLDER / "RESULTS.md"
    names = arguments.names or list(BENCHMARKS)
    for name in names:
        if name not in ALL:
            parser.error(f"there is no benchmark {name!r}; choose among {', '.join(ALL)}")
    failed = []
    for name in names:
        print(f"{name}: ", end="", flush=True)
        started = time.monotonic()
        printed = run_benchmark(name, tiny=arguments.tiny, data=arguments.data)
        seconds = time.monotonic() - started
        if printed is None:
            failed.append(name)
            print("failed", flush=True)
            continue
        write_section(output, name, printed, seconds)
        print(f"{seconds:.0f} s", flush=True)
    if failed:
        sys.exit(f"failed, with their sections as they were: {', '.join(failed)}")
    print(f"written: {output}")


def run_benchmark(name: str, *, tiny: bool = False, data: Path | None = None) -> str | None:
    """Run a benchmark in a process of its own; return what it printed, None if it failed."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), *(["--tiny"] if tiny else [])]
    if data is not None and name in OF_DATA:
        command += ["--data", str(data.resolve())]
    process = subprocess.run(
        command, cwd=FOLDER.parent, stdout=subprocess.PIPE, encoding="utf-8", check=False
    )
    return process.stdout if process.returncode == 0 else None


def write_section(file: Path, name: str, printed: str, seconds: float) -> None:
    """Put a benchmark's tables into the file in place of its former ones, or where they belong."""
    sections = read_sections(file)
    measured = (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC at {commit()} in {seconds:.0f} s, on "
        f"{cores()} cores of {cpu_model()}, GPU: {gpu()}."
    )
    sections[name] = f"## {name}\n\n{measured}\n\n{printed.strip()}"
    sections["machine"] = machine()
    order = ("machine", *ALL, *BY_HAND)
    parts = [
        f"<!-- begin {part} -->\n{sections[part]}\n<!-- end {part} -->"
        for part in order
        if part in sections
    ]
    title = "# Benchmarks\n\nWritten by `make bench`; `make bench ONLY=attacks` replaces a section."
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    temporary.write_text("\n\n".join([title, *parts]) + "\n", encoding="utf-8")
    temporary.replace(file)


def read_sections(file: Path) -> dict[str, str]:
    """Return the sections of the file by name, without their markers."""
    if not file.is_file():
        return {}
    marked = r"<!-- begin (\w+) -->\n(.*?)\n<!-- end \1 -->"
    return dict(re.findall(marked, file.read_text(encoding="utf-8"), flags=re.DOTALL))


def machine() -> str:
    """Describe this machine; sections of another day say in their first line where they ran."""
    rows = {
        "CPU": cpu_model(),
        "cores": str(cores()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "GPU": gpu(),
        "operating system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit(),
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(["Machine of the latest run:", "", "| | |", "|---|---|", *lines])


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else NO_GPU


def commit() -> str:
    """Return the commit that was measured, and whether files differed from it."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/RESULTS.md")
    except (OSError, subprocess.CalledProcessError):
        return "no commit"
    return f"commit {head}{' with changes not committed' if changed else ''}"


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    process = subprocess.run(
        command, cwd=FOLDER.parent, capture_output=True, encoding="utf-8", check=True
    )
    return process.stdout.strip()


if __name__ == "__main__":
    main()
