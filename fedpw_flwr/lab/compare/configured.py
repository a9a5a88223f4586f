"""What a run's configuration says: what tells settings and methods apart, and a setting in words.

A setting's label holds what tells experiments apart at a glance: data, partition, clients, model,
rounds. The rest, local training above all, is a sentence or two below the heading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedpw_flwr.lab.compare.runs import FinishedRun

# Keys of the strategy that say who trains, whatever the method. The values are Flower's defaults.
_PARTICIPATION = {"fraction_train": 1.0, "min_train_nodes": None, "min_available_nodes": None}

# Where a server computes is no property of a method; what clients evaluate is in no figure.
_NOT_OF_THE_METHOD = {"name", "device", "fraction_evaluate", "min_evaluate_nodes", *_PARTICIPATION}

_MOST_DOMAINS = 6

_TRAINING: Mapping[str, Callable[[Any], str]] = {
    "epochs": lambda value: counted(value, "epoch"),
    "batch_size": lambda value: f"batches of {_written(value)}",
    "learning_rate": lambda value: f"SGD with learning rate {_written(value)}",
    "momentum": lambda value: f"momentum {_written(value)}",
    "weight_decay": lambda value: f"weight decay {_written(value)}",
    "crop_padding": lambda value: f"crops padded by {counted(value, 'pixel')}" if value else "",
    "horizontal_flip": lambda value: "half of the images mirrored" if value else "",
    "precision": lambda value: "" if value == "float32" else str(value),
    # Compiled or not, the steps are the same.
    "compile": lambda _: "",
    "_target_": lambda _: "",
}


def group_of(run: FinishedRun, name: str) -> Mapping[str, Any]:
    """Return a group of the configuration, empty where there is none."""
    content = run.fingerprint.get(name)
    return content if isinstance(content, Mapping) else {}


def strategy_name(run: FinishedRun) -> str:
    """Return the strategy's name, as the user types it."""
    return str(group_of(run, "strategy").get("name") or run.summary.strategy)


def setting_values(run: FinishedRun) -> dict[str, str]:
    """Return what must be the same in runs that are compared, by a key like ``client.epochs``.

    That is all that changes results, but for the seed and the method. Values are as labels show
    them, so that ``0`` and ``0.0`` are no difference.
    """
    kept = {key: run.fingerprint[key] for key in run.fingerprint if key not in ("strategy", "seed")}
    strategy = group_of(run, "strategy")
    who = {key: strategy.get(key, default) for key, default in _PARTICIPATION.items()}
    return _flat({**kept, "strategy": who})


def method_values(run: FinishedRun) -> dict[str, str]:
    """Return what tells apart methods of one name, likewise."""
    strategy = group_of(run, "strategy")
    return _flat({key: strategy[key] for key in strategy if key not in _NOT_OF_THE_METHOD})


def setting_label(run: FinishedRun) -> str:
    """Return data, partition, number of clients, model and rounds of a run."""
    share = 100 * float(group_of(run, "strategy").get("fraction_train", 1.0))
    parts = (
        _dataset(run),
        _group(run, "partition", ("alpha", "classes_per_client", "shards_per_client", "share")),
        _clients(run),
        f"{_written(round(share, 6))} % of clients a round" if share < 100 else "",
        _group(run, "model", ("depth", "width")),
        counted(run.summary.rounds, "round"),
    )
    # A data set and the partition made for it may have one name.
    return " · ".join(dict.fromkeys(part for part in parts if part))


def local_training(run: FinishedRun) -> str:
    """Return how clients train, in words; empty where the configuration does not."""
    client = group_of(run, "client")
    known = [_TRAINING[key](client[key]) for key in _TRAINING if client.get(key) is not None]
    others = [f"{key}={_written(value)}" for key, value in client.items() if key not in _TRAINING]
    training = ", ".join(part for part in (*known, *others) if part)
    normalisation = group_of(run, "model").get("normalisation")
    sentences = (
        f"Local training: {training}." if training else "",
        f"Normalisation of the network: {normalisation}." if normalisation is not None else "",
    )
    return " ".join(filter(None, sentences))


def held_images(runs: Sequence[FinishedRun]) -> str:
    """Return how many images clients hold, in words; empty where no run recorded it."""
    clients = [client for run in runs if run.holdings for client in run.holdings.clients]
    if not clients:
        return ""
    trains = _between([sum(client.train) for client in clients])
    tests = [sum(client.test) for client in clients]
    keeps = f", and keeps {_between(tests)} for testing" if any(tests) else ""
    return f"Each client trains on {trains} images{keeps}."


def counted(number: Any, thing: str) -> str:
    """Write a number of things."""
    return f"{_written(number)} {thing}{'' if number == 1 else 's'}"


def _between(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _dataset(run: FinishedRun) -> str:
    dataset = group_of(run, "dataset")
    domains = run.domains
    several = f"{len(domains)} domains ({', '.join(domains[:3])}, …)"
    unnamed = several if len(domains) > _MOST_DOMAINS else ", ".join(domains)
    most = dataset.get("max_test_per_domain")
    # Labels are in published tables, so this one keeps its word for an image.
    limit = f"at most {counted(most, 'test image')}{' a domain' if len(domains) > 1 else ''}"
    archives = _kind(dataset) == "archives" or dataset.get("archives_folder")
    notes = [*(["archives"] if archives else []), *([limit] if most is not None else [])]
    name = str(dataset.get("name") or unnamed)
    return f"{name} ({', '.join(notes)})" if notes else name


def _group(run: FinishedRun, group: str, told: Sequence[str]) -> str:
    content = group_of(run, group)
    values = [f"{key}={_written(content[key])}" for key in told if content.get(key) is not None]
    return ", ".join(filter(None, (str(content.get("name") or _kind(content)), *values)))


def _kind(group: Mapping[str, Any]) -> str:
    return str(group.get("_target_", "")).rpartition(".")[2]


def _clients(run: FinishedRun) -> str:
    if run.holdings is not None:
        return counted(len(run.holdings.clients), "client")
    per_domain = group_of(run, "partition").get("clients_per_domain")
    return counted(per_domain * len(run.domains), "client") if isinstance(per_domain, int) else ""


def _written(value: object) -> str:
    """Write a value of a configuration as a label shows it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    return str(value)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = _written(value)
    return flat
