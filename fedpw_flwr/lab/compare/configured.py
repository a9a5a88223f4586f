"""What a run's configuration says of its setting, and what of its method.

Both are flat: the value, as it is written in labels, by a key such as ``client.epochs``. Numbers
are written in one way, so that ``0`` and ``0.0`` are no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedpw_flwr.lab.compare.runs import FinishedRun

__all__ = [
    "differing_keys",
    "group_of",
    "method_values",
    "setting_values",
    "strategy_name",
    "train_share",
    "written",
]

_NOT_OF_THE_SETTING = ("strategy", "seed", "runtime", "resume")

# Keys of the strategy that say who trains, whatever the method. The values are Flower's defaults.
_PARTICIPATION = {"fraction_train": 1.0, "min_train_nodes": None, "min_available_nodes": None}

# How long a server waits and where it computes is no property of a method; what clients evaluate
# is in no figure.
_NOT_OF_THE_METHOD = (
    *("name", "wait_for_clients", "when_missing", "device"),
    *("fraction_evaluate", "min_evaluate_nodes"),
    *_PARTICIPATION,
)


def setting_values(run: FinishedRun) -> dict[str, str]:
    """Return what must be the same in runs that are compared."""
    kept = {
        key: value for key, value in run.configuration.items() if key not in _NOT_OF_THE_SETTING
    }
    strategy = group_of(run, "strategy")
    who = {key: strategy.get(key, default) for key, default in _PARTICIPATION.items()}
    return _flat(_without_places({**kept, "strategy": who}))


def method_values(run: FinishedRun) -> dict[str, str]:
    """Return what tells apart methods of one name."""
    strategy = group_of(run, "strategy")
    kept = {key: value for key, value in strategy.items() if key not in _NOT_OF_THE_METHOD}
    return _flat(_without_places(kept))


def strategy_name(run: FinishedRun) -> str:
    """Return the strategy's name, as the user types it."""
    return str(group_of(run, "strategy").get("name") or run.summary.strategy)


def train_share(run: FinishedRun) -> float:
    """Return the share of the clients that a round trains, 0 to 1."""
    share = group_of(run, "strategy").get("fraction_train")
    return float(share) if isinstance(share, int | float) else 1.0


def group_of(run: FinishedRun, name: str) -> Mapping[str, Any]:
    """Return a group of the configuration, empty where there is none."""
    content = run.configuration.get(name)
    return content if isinstance(content, Mapping) else {}


def differing_keys(contents: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the keys that have not the same value everywhere, in order of first appearance."""
    everything = list(contents)
    keys = dict.fromkeys(key for content in everything for key in content)
    return [key for key in keys if len({content.get(key) for content in everything}) > 1]


def written(value: object) -> str:
    """Write a value of a configuration as a label shows it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    return str(value)


def _without_places(nested: Mapping[Any, Any]) -> dict[str, Any]:
    """Leave out where data lie and how they get there; whether a folder is given may matter.

    With ``archives_folder`` a data set is read from archives that need not hold all of it.
    """
    kept: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            kept[str(key)] = _without_places(value)
        elif str(key).endswith("_folder"):
            kept[str(key)] = None if value is None else "given"
        elif key not in ("folder", "download"):
            kept[str(key)] = value
    return kept


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = written(value)
    return flat
