"""What objects were called whose ``_target_`` was written down before their modules moved.

Configurations of one's own, and those that finished runs have kept, name objects by module. They
still work, and a run is the same run where only a module has moved.
"""

from __future__ import annotations

from typing import Any

_PRESENT = {
    f"fedpw_flwr.{room}.": f"fedpw_flwr.lab.{room}." for room in ("data", "models", "training")
}
_FIRST = {present: first for first, present in _PRESENT.items()}


def with_present_targets(configuration: Any) -> Any:
    """Return a nested configuration in which every ``_target_`` has the name it has now."""
    return _renamed(configuration, _PRESENT)


def with_first_targets(configuration: Any) -> Any:
    """Return a nested configuration in which every ``_target_`` has the name it had first."""
    return _renamed(configuration, _FIRST)


def _renamed(value: Any, names: dict[str, str], key: object = None) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(one, names, key) for key, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    if key == "_target_" and isinstance(value, str):
        for before, after in names.items():
            if value.startswith(before):
                return after + value.removeprefix(before)
    return value
