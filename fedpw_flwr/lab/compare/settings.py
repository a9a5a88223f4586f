"""Which runs can be compared: settings, the methods in each, and the seeds of a method.

Runs belong to one *setting* if all that changes their results is the same apart from ``seed`` and
``strategy``: same data, partition, model, local training and rounds. How many clients a round
trains is configured with the strategy, and is of the setting too. So are the images themselves:
files may change under a configuration that stays the same.
Within a setting a *method* is a strategy's name; where runs of one name differ in their strategy's
keys (a sweep over beta), every value is a method of its own.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import pandas as pd

from fedpw_flwr.lab.compare.figures import (
    CLIENT_FIGURES,
    DOMAIN_FIGURES,
    MEAN_AUC,
    POOLED_AUC,
    Basis,
    Figure,
    accuracy_of,
    auc_of,
)
from fedpw_flwr.lab.compare.runs import FinishedRun, LeftOutRun

T = TypeVar("T")

# What a label tells at most.
_MOST_DIFFERENCES, _MOST_DOMAINS = 4, 6

# Keys of the strategy that say who trains, whatever the method. The values are Flower's defaults.
_PARTICIPATION = {"fraction_train": 1.0, "min_train_nodes": None, "min_available_nodes": None}

# Where a server computes is no property of a method; what clients evaluate is in no figure.
_NOT_OF_THE_METHOD = {"name", "device", "fraction_evaluate", "min_evaluate_nodes", *_PARTICIPATION}


@dataclass(frozen=True, eq=False)
class Method:
    """A strategy with its own settings, run with some seeds."""

    label: str  # unique within its setting, such as "fedpw" or "fedpw, beta=0.1"
    strategy: str
    runs: Mapping[int, FinishedRun]  # by seed, ascending


@dataclass(frozen=True, eq=False)
class Setting:
    """What several methods were run on; its label and its slug are unique."""

    label: str  # data, partition, model and rounds
    slug: str  # the label as a folder's name
    domains: tuple[str, ...]  # in the order recorded
    methods: tuple[Method, ...]  # by name, and by the values of what was swept

    @property
    def rounds(self) -> int:
        """Number of the last round."""
        return max(run.summary.rounds for run in self.runs)

    @property
    def runs(self) -> list[FinishedRun]:
        """The runs of all methods."""
        return [run for method in self.methods for run in method.runs.values()]

    @cached_property
    def rounds_of_runs(self) -> pd.DataFrame:
        """The histories of all runs, one row a method, seed and round."""
        histories = {
            method.label: pd.concat({seed: run.history for seed, run in method.runs.items()})
            for method in self.methods
        }
        return pd.concat(histories, names=["method", "seed", "round"])

    @property
    def tested_rounds(self) -> pd.DataFrame:
        """Those rounds after which the model was tested."""
        return self.rounds_of_runs[self.rounds_of_runs["tested"] > 0]

    @property
    def classes(self) -> int | None:
        """Number of classes of the data; None where no run tells."""
        for run in self.runs:
            number = run.group("dataset").get("num_classes")
            if isinstance(number, int):
                return number
            if run.holdings is not None and run.holdings.clients:
                return len(run.holdings.clients[0].train)
        return None

    @property
    def chance(self) -> float:
        """The accuracy of guessing in percent; NaN where the number of classes is not known."""
        return 100 / self.classes if self.classes else math.nan

    @property
    def has_seeds(self) -> bool:
        """Whether any method was run with more than one seed."""
        return any(len(method.runs) > 1 for method in self.methods)

    @property
    def overlap(self) -> float:
        """Test examples for each training example where every seed divides the same data anew.

        0 where test data are the same for all seeds.
        """
        dataset = self.runs[0].group("dataset")
        share = float(dataset.get("test_share") or 0.0)
        return share / (1 - share) if _seeds_divide(self.runs[0]) else 0.0

    @property
    def bases(self) -> tuple[Basis, ...]:
        """Whom accuracies can be compared between: clients first, then several domains."""
        tested, several = "clients.mean" in self.rounds_of_runs, len(self.domains) > 1
        known: dict[Basis, bool] = {"clients": tested, "domains": several}
        return tuple(basis for basis in known if known[basis])

    @property
    def domain_figures(self) -> tuple[Figure, ...]:
        """Figures over the domains' test sets; one domain has no spread and is its own mean."""
        if len(self.domains) == 1:
            return DOMAIN_FIGURES[:1]
        return (*map(accuracy_of, self.domains), *DOMAIN_FIGURES)

    @property
    def client_figures(self) -> tuple[Figure, ...]:
        """Figures over the clients' own test images; none where no method has them."""
        return CLIENT_FIGURES if "clients" in self.bases else ()

    @property
    def auc_figures(self) -> tuple[Figure, ...]:
        """Areas under the ROC curve; none where there are more than two classes."""
        known = POOLED_AUC.key in self.rounds_of_runs
        return (*map(auc_of, self.domains), MEAN_AUC, POOLED_AUC) if known else ()

    @property
    def figures(self) -> tuple[Figure, ...]:
        """All figures."""
        return (*self.domain_figures, *self.auc_figures, *self.client_figures)

    def reference(self, wanted: str | None) -> Method | None:
        """Return the method that the others are compared with; None if it was not run here.

        It is wanted by its label, or else by the name of its strategy. None: fedavg if it was run,
        else the first method.
        """
        named = {method.strategy: method for method in reversed(self.methods)}
        named |= {method.label: method for method in self.methods}
        return named.get("fedavg", self.methods[0]) if wanted is None else named.get(wanted)


def group_runs(runs: Sequence[FinishedRun]) -> tuple[list[Setting], list[LeftOutRun]]:
    """Put runs together into settings, by label, and name those that were run again later."""
    groups: list[list[FinishedRun]] = []
    for alike in _parted(runs, _alike):
        # Runs that did not record their data may stand on the only ones.
        by_data = _parted(alike, lambda run: run.summary.data_digest)
        recorded = [same for same in by_data if same[0].summary.data_digest is not None]
        if _seeds_divide(alike[0]) and len({run.summary.seed for run in alike}) == len(recorded):
            # Each seed has a division of its own, and only one.
            recorded = []
        groups += by_data if len(recorded) > 1 else [alike]
    labelled: list[tuple[str, list[FinishedRun]]] = []
    for same_name in _parted(groups, lambda group: _label(group[0])):
        contents = [{"data": _data(group), **_setting_values(group[0])} for group in same_name]
        for group, own in zip(same_name, _differences(contents), strict=True):
            label = " · ".join([_label(group[0]), *own[:_MOST_DIFFERENCES]])
            labelled.append((label, group))
    settings: list[Setting] = []
    repeated: list[LeftOutRun] = []
    for label, group in sorted(labelled, key=lambda each: _natural(each[0])):
        label = _unused(label, {other.label for other in settings}, " ({})")
        words = re.sub(r"\([^)]*\)", "", label.lower())
        slug = re.sub(r"[^a-z0-9.=]+", "-", words).strip("-.")[:80].rstrip("-.")
        slug = _unused(slug or "setting", {other.slug for other in settings}, "-{}")
        methods, older = _methods(group)
        settings.append(Setting(label, slug, group[0].domains, methods))
        repeated += older
    return settings, repeated


def _strategy(run: FinishedRun) -> str:
    """Return the strategy's name, as the user types it."""
    return str(run.group("strategy").get("name") or run.summary.strategy)


def _setting_values(run: FinishedRun) -> dict[str, str]:
    """Return what must be the same in runs that are compared: all but the seed and the method.

    By a key like ``client.epochs``, as labels show it, so that 0 and 0.0 are no difference.
    """
    kept = {key: run.fingerprint[key] for key in run.fingerprint if key not in ("strategy", "seed")}
    who = {key: run.group("strategy").get(key, usual) for key, usual in _PARTICIPATION.items()}
    return _flat({**kept, "strategy": who})


def _method_values(run: FinishedRun) -> dict[str, str]:
    """Return what tells apart methods of one name, likewise."""
    strategy = run.group("strategy")
    return _flat({key: strategy[key] for key in strategy if key not in _NOT_OF_THE_METHOD})


def _label(run: FinishedRun) -> str:
    """Return data, partition, number of clients, model and rounds of a run."""
    share = 100 * float(run.group("strategy").get("fraction_train", 1.0))
    number = run.group("partition").get("clients_per_domain")
    number = number * len(run.domains) if isinstance(number, int) else None
    number = number if run.holdings is None else len(run.holdings.clients)
    parts = (
        _dataset(run),
        _group(run, "partition", ("alpha", "classes_per_client", "shards_per_client", "share")),
        "" if number is None else counted(number, "client"),
        f"{written(round(share, 6))} % of clients a round" if share < 100 else "",
        _group(run, "model", ("depth", "width")),
        counted(run.rounds, "round"),
    )
    # A data set and the partition made for it may have one name.
    return " · ".join(dict.fromkeys(filter(None, parts)))


def counted(number: Any, thing: str) -> str:
    """Write a number of things."""
    return f"{written(number)} {thing}{'' if number == 1 else 's'}"


def _dataset(run: FinishedRun) -> str:
    dataset, domains = run.group("dataset"), run.domains
    name = dataset.get("name") or ", ".join(domains)
    if len(domains) > _MOST_DOMAINS and not dataset.get("name"):
        name = f"{len(domains)} domains ({', '.join(domains[:3])}, …)"
    archives = _kind(dataset) == "archives" or dataset.get("archives_folder")
    notes = ["archives"] if archives else []
    if (most := dataset.get("max_test_per_domain")) is not None:
        # Labels are in published tables, so this one keeps its word for an image.
        each = " a domain" if len(domains) > 1 else ""
        notes.append(f"at most {counted(most, 'test image')}{each}")
    return f"{name} ({', '.join(notes)})" if notes else str(name)


def _group(run: FinishedRun, group: str, told: Sequence[str]) -> str:
    content = run.group(group)
    values = [f"{key}={written(content[key])}" for key in told if content.get(key) is not None]
    return ", ".join(filter(None, (str(content.get("name") or _kind(content)), *values)))


def _kind(group: Mapping[str, Any]) -> str:
    return str(group.get("_target_", "")).rpartition(".")[2]


def written(value: object) -> str:
    """Write a value of a configuration as a label shows it."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = written(value)
    return flat


def _alike(run: FinishedRun) -> Hashable:
    # Domains and rounds of the records: a configuration may say less than it means.
    return frozenset(_setting_values(run).items()), frozenset(run.domains), run.rounds


def _parted(things: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Part things by a key, in the order in which each of its values appears first."""
    parts: dict[Hashable, list[T]] = {}
    for thing in things:
        parts.setdefault(key(thing), []).append(thing)
    return list(parts.values())


def _methods(runs: Sequence[FinishedRun]) -> tuple[tuple[Method, ...], list[LeftOutRun]]:
    methods: list[Method] = []
    repeated: list[LeftOutRun] = []
    for members in _parted(runs, _strategy):
        name = _strategy(members[0])
        swept = _differences([_method_values(run) for run in members])
        labelled = zip((", ".join([name, *own]) for own in swept), members, strict=True)
        for same in _parted(labelled, lambda each: each[0]):
            own = [run for _, run in same]
            own.sort(key=lambda run: (run.summary.seed, run.folder.finished_at, run.path))
            newest = {run.summary.seed: run for run in own}
            methods.append(Method(same[0][0], name, newest))
            for run in own:
                later = newest[run.summary.seed]
                if run is not later:
                    where = os.path.relpath(later.path, run.path.parent)
                    reason = f"the same was run again later: {where}"
                    repeated.append(LeftOutRun(run.path, "repeated", reason))
    return tuple(sorted(methods, key=lambda method: _natural(method.label))), repeated


def _differences(contents: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Return for each of some contents, as ``key=value``, in what not all are the same."""
    keys = dict.fromkeys(key for content in contents for key in content)
    differing = [key for key in keys if len({content.get(key) for content in contents}) > 1]
    return [[f"{key}={content.get(key, 'absent')}" for key in differing] for content in contents]


def _seeds_divide(run: FinishedRun) -> bool:
    """Return whether each seed divides the data into training and test anew."""
    return run.group("dataset").get("seed", 0) is None


def _data(runs: Sequence[FinishedRun]) -> str:
    digests = (run.summary.data_digest for run in runs)
    return next((digest[:8] for digest in digests if digest is not None), "not recorded")


def _unused(name: str, used: set[str], pattern: str) -> str:
    candidates = (name, *(name + pattern.format(number) for number in range(2, len(used) + 2)))
    return next(candidate for candidate in candidates if candidate not in used)


def _natural(label: str) -> list[Any]:
    """Return a key to sort by, in which beta=0.5 comes before beta=10."""
    # Text and numbers take turns.
    parts = re.split(r"(\d+(?:\.\d+)?)", label.lower())
    return [float(part) if index % 2 else part for index, part in enumerate(parts)]
