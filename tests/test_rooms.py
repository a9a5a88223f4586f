"""Which folder of the package may import which: the walls between its rooms."""

from __future__ import annotations

import ast
import sys
from itertools import combinations
from pathlib import Path

import pytest

import fedpw_flwr

PACKAGE = Path(fedpw_flwr.__file__).parent


def imported(path: Path) -> set[str]:
    """Return the names of everything a file imports, wherever in it; none is relative."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            # `from fedpw_flwr import wire` imports the folder, too.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_imported(room: str) -> set[str]:
    """Return the other folders and modules right under the package that a folder imports."""
    files = (PACKAGE / room).rglob("*.py")
    names = {name for path in files for name in imported(path)}
    parts = (name.split(".") for name in names)
    return {part[1] for part in parts if part[0] == "fedpw_flwr" and part[1:]} - {room}


ROOMS = (
    *("algorithm", "engines", "wire", "rounds", "strategy", "legacy", "client", "observers"),
    *("baselines", "checkpoint", "report", "lab"),
)


@pytest.mark.parametrize(
    ("room", "allowed"),
    [
        ("algorithm", set()),
        ("engines", {"algorithm"}),
        ("wire", {"algorithm"}),
        ("rounds", {"algorithm", "wire"}),
        ("observers", {"__version__", "files", "report", "rounds", "wire"}),
        ("client", {"algorithm", "device", "wire"}),
        ("strategy", {"algorithm", "device", "engines", "rounds", "wire"}),
        ("baselines", {"algorithm", "rounds", "strategy", "wire"}),
        ("report", set()),
        ("legacy", {"algorithm", "rounds", "strategy", "wire"}),
    ],
)
def test_a_room_imports_only_what_lies_below_it(room: str, allowed: set[str]) -> None:
    assert rooms_imported(room) == allowed


def test_the_method_needs_numpy_and_torch_only() -> None:
    names = {name for path in (PACKAGE / "algorithm").rglob("*.py") for name in imported(path)}
    others = {name.split(".")[0] for name in names} - {"fedpw_flwr"}
    standard = {"__future__", "collections", "dataclasses", "enum", "itertools", "math", "re"}
    assert others - standard - {"typing"} == {"numpy", "torch"}


def test_no_two_rooms_import_each_other() -> None:
    graph = {room: rooms_imported(room) for room in ROOMS}
    assert all(graph[room] for room in ROOMS if room not in ("algorithm", "report"))
    pairs = combinations(ROOMS, 2)
    assert [(one, two) for one, two in pairs if two in graph[one] and one in graph[two]] == []


def test_the_plug_in_imports_nothing_of_the_laboratory() -> None:
    assert [room for room in ROOMS if room != "lab" and "lab" in rooms_imported(room)] == []


def test_the_plug_in_needs_few_packages() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if "lab" not in path.parts]
    names = {name.split(".")[0] for path in files for name in imported(path)}
    allowed = {"fedpw_flwr", "filelock", "flwr", "numba", "numpy", "safetensors", "torch"}
    # Imported when they are used: by one baseline, by pages, by the trackers.
    allowed |= {"scipy", "jinja2", "mlflow", "wandb"}
    assert names - set(sys.stdlib_module_names) - {"__future__"} <= allowed
