"""What a setting is called, and what else a reader has to know of it, in words.

The label holds what tells experiments apart at a glance: data, partition, clients, model, rounds.
The rest, local training above all, is a sentence or two below the heading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedpw_flwr.lab.compare.configured import group_of, train_share, written
from fedpw_flwr.lab.compare.runs import FinishedRun

__all__ = ["counted", "held_images", "local_training", "setting_label"]

_MOST_DOMAINS = 6

_TRAINING: Mapping[str, Callable[[Any], str]] = {
    "epochs": lambda value: counted(value, "epoch"),
    "batch_size": lambda value: f"batches of {written(value)}",
    "learning_rate": lambda value: f"SGD with learning rate {written(value)}",
    "momentum": lambda value: f"momentum {written(value)}",
    "weight_decay": lambda value: f"weight decay {written(value)}",
    "crop_padding": lambda value: f"crops padded by {counted(value, 'pixel')}" if value else "",
    "horizontal_flip": lambda value: "half of the images mirrored" if value else "",
    "precision": lambda value: "" if value == "float32" else str(value),
    # Compiled or not, the steps are the same.
    "compile": lambda _: "",
    "_target_": lambda _: "",
}


def setting_label(run: FinishedRun) -> str:
    """Return data, partition, number of clients, model and rounds of a run."""
    share = train_share(run)
    parts = (
        _dataset(run),
        _group(run, "partition", ("alpha", "classes_per_client", "shards_per_client", "share")),
        _clients(run),
        f"{written(round(100 * share, 6))} % of clients a round" if share < 1 else "",
        _group(run, "model", ("depth", "width")),
        counted(run.summary.rounds, "round"),
    )
    # A data set and the partition made for it may have one name.
    return " · ".join(dict.fromkeys(part for part in parts if part))


def local_training(run: FinishedRun) -> str:
    """Return how clients train, in words; empty where the configuration does not."""
    client = group_of(run, "client")
    known = [_TRAINING[key](client[key]) for key in _TRAINING if client.get(key) is not None]
    others = [f"{key}={written(value)}" for key, value in client.items() if key not in _TRAINING]
    said = ", ".join(part for part in (*known, *others) if part)
    normalisation = group_of(run, "model").get("normalisation")
    network = "" if normalisation is None else f" Normalisation of the network: {normalisation}."
    return f"Local training: {said}.{network}" if said else network.strip()


def held_images(runs: Sequence[FinishedRun]) -> str:
    """Return how many images clients hold, in words; empty where no run recorded it."""
    clients = [
        client for run in runs if run.holdings is not None for client in run.holdings.clients
    ]
    if not clients:
        return ""
    trains = _between([sum(client.train) for client in clients])
    tests = [sum(client.test) for client in clients]
    keeps = f", and keeps {_between(tests)} for testing" if any(tests) else ""
    return f"Each client trains on {trains} images{keeps}."


def counted(number: Any, thing: str) -> str:
    """Write a number of things."""
    return f"{written(number)} {thing}{'' if number == 1 else 's'}"


def _between(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _dataset(run: FinishedRun) -> str:
    dataset = group_of(run, "dataset")
    domains = run.domains
    several = f"{len(domains)} domains ({', '.join(domains[:3])}, …)"
    unnamed = several if len(domains) > _MOST_DOMAINS else ", ".join(domains)
    kind = str(dataset.get("_target_", "")).rpartition(".")[2]
    archives = kind == "archives" or dataset.get("archives_folder") is not None
    most = dataset.get("max_test_per_domain")
    # Labels are in published tables, so this one keeps its word for an image.
    limit = "" if most is None else f"at most {counted(most, 'test picture')}"
    if limit and len(domains) > 1:
        limit += " a domain"
    notes = ", ".join(note for note in ("archives" if archives else "", limit) if note)
    name = str(dataset.get("name") or unnamed)
    return f"{name} ({notes})" if notes else name


def _group(run: FinishedRun, group: str, told: Sequence[str]) -> str:
    content = group_of(run, group)
    name = str(content.get("name") or str(content.get("_target_", "")).rpartition(".")[2])
    values = [f"{key}={written(content[key])}" for key in told if content.get(key) is not None]
    return ", ".join(part for part in (name, *values) if part)


def _clients(run: FinishedRun) -> str:
    if run.holdings is not None:
        return counted(len(run.holdings.clients), "client")
    per_domain = group_of(run, "partition").get("clients_per_domain")
    if not isinstance(per_domain, int):
        return ""
    return counted(per_domain * len(run.domains), "client")
