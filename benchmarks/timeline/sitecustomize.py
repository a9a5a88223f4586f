"""Note when a process started, what it imported and how long some calls took.

Python imports this module by its name at the start of every process that has this folder on its
PYTHONPATH, so the processes of a launch need no change to be watched. Each writes a file of JSON
lines into the folder that ``FEDPW_TIMELINE`` names; times are in seconds on the system's monotonic
clock, which all processes of a machine share.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "FEDPW_TIMELINE"

CALLS = {
    "fedpw_flwr.lab.command": ("_run",),
    "fedpw_flwr.lab.launch.staging": ("stage_app",),
    "fedpw_flwr.lab.launch.superlink": ("LocalSuperLink._start", "LocalSuperLink.wait_until_ready"),
    "fedpw_flwr.lab.launch.launch": ("_Run._submit", "_Run._outcome"),
    "fedpw_flwr.lab.config.configuration": ("compose_configuration",),
    "fedpw_flwr.lab.experiment": ("build_experiment", "Experiment.check"),
    "fedpw_flwr.lab.app.recording": ("RunRecorder.record_round",),
    "fedpw_flwr.lab.plots.run_plots": ("write_plots",),
    "flwr.simulation.app": ("run_simulation_process",),
    "flwr.server.superlink.fleet.vce.backend.raybackend": (
        "RayBackend.__init__",
        "RayBackend.build",
    ),
    "flwr.clientapp.client_app": ("ClientApp.__call__",),
    "flwr.superlink.grid.inmemory_grid": ("InMemoryGrid.push_messages",),
}
"""Functions and methods to time, by module."""

PACKAGES = (
    *("flwr", "ray", "torch", "numpy", "torchvision", "hydra", "omegaconf", "rich", "psutil"),
    *("scipy", "sklearn", "datasets", "flwr_datasets", "pandas", "pyarrow", "matplotlib", "PIL"),
    *("fedpw_flwr", "grpc", "httpx", "fastapi", "uvicorn", "cryptography", "joblib", "safetensors"),
)
"""Packages whose imports are timed; the time counts for the innermost."""


class Notes:
    """Lines of a process's file, written one by one: a killed process leaves what it had."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / f"{os.getpid()}.jsonl"
        self._lock = threading.Lock()

    def add(self, event: str, start: float, end: float, own: float | None = None) -> None:
        """Note an event; `own` is its time without the events inside it.

        The processor time that the process has used until then is noted too.
        """
        own = end - start if own is None else own
        note = {"event": event, "start": start, "end": end, "own": own, "cpu": time.process_time()}
        line = json.dumps(note) + "\n"
        with self._lock, self._file.open("a", encoding="utf-8") as file:
            file.write(line)


class TimingLoader(importlib.abc.Loader):
    """Any module's loader, timed; the calls to be timed are wrapped when the module is there."""

    stacks = threading.local()

    def __init__(self, loader: Any, name: str, notes: Notes) -> None:
        self._loader, self._name, self._notes = loader, name, notes

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._loader, attribute)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        stack = self.stacks.__dict__.setdefault("inner", [])
        stack.append(0.0)
        start = time.monotonic()
        try:
            self._loader.exec_module(module)
        finally:
            end = time.monotonic()
            inner = stack.pop()
            if stack:
                stack[-1] += end - start
            package = self._name.partition(".")[0]
            if self._name in PACKAGES or end - start > 0.05:
                self._notes.add(f"import {self._name}", start, end, end - start - inner)
            elif package in PACKAGES:
                self._notes.add(f"import {package}.*", start, end, end - start - inner)
        for call in CALLS.get(self._name, ()):
            self._wrap(module, call)

    def _wrap(self, module: ModuleType, call: str) -> None:
        *outer, name = call.split(".")
        owner: Any = functools.reduce(getattr, outer, module)
        if hasattr(owner, name):
            setattr(owner, name, timed(getattr(owner, name), call, self._notes))


class TimingFinder(importlib.abc.MetaPathFinder):
    """Lets the other finders find, and stands in front of what they found."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in PACKAGES:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if isinstance(spec.loader, importlib.machinery.SourceFileLoader):
                    spec.loader = TimingLoader(spec.loader, name, self._notes)
                return spec
        return None


def timed(call: Callable[..., Any], name: str, notes: Notes) -> Callable[..., Any]:
    @functools.wraps(call)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        start = time.monotonic()
        notes.add(f"enter {name}", start, start)
        try:
            return call(*arguments, **named)
        finally:
            notes.add(name, start, time.monotonic())

    for attribute in ("cache_clear", "cache_info"):
        if hasattr(call, attribute):
            setattr(wrapper, attribute, getattr(call, attribute))
    return wrapper


def started() -> float:
    """Return when the system started this process, to its 10 ms."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def command() -> str:
    words = Path("/proc/self/cmdline").read_bytes().decode(errors="replace").split("\0")
    return " ".join(word.rpartition("/")[2] for word in words[:3] if word)


if VARIABLE in os.environ and sys.platform.startswith("linux"):
    _notes = Notes(Path(os.environ[VARIABLE]))
    _notes.add(f"process {command()}", started(), time.monotonic())
    sys.meta_path.insert(0, TimingFinder(_notes))
