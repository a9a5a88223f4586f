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
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import pandas as pd

from fedpw_flwr.lab.compare.configured import (
    group_of,
    method_values,
    setting_label,
    setting_values,
    strategy_name,
)
from fedpw_flwr.lab.compare.figures import (
    CLIENT_FIGURES,
    DOMAIN_FIGURES,
    Basis,
    Figure,
    accuracy_of,
)
from fedpw_flwr.lab.compare.runs import FinishedRun, LeftOutRun

T = TypeVar("T")

_MOST_DIFFERENCES = 4


@dataclass(frozen=True, eq=False)
class Method:
    """A strategy with its own settings, run with some seeds."""

    label: str  # unique within its setting, such as "fedpw" or "fedpw, beta=0.1"
    strategy: str
    runs: Mapping[int, FinishedRun]  # by seed, ascending

    def has(self, key: str) -> bool:
        """Return whether every run has a figure."""
        return all(key in run.history for run in self.runs.values())


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
    def classes(self) -> int | None:
        """Number of classes of the data; None where no run tells."""
        for run in self.runs:
            number = group_of(run, "dataset").get("num_classes")
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
    def bases(self) -> tuple[Basis, ...]:
        """Whom accuracies can be compared between: clients first, then several domains."""
        tested = any(method.has("clients.mean") for method in self.methods)
        known: dict[Basis, bool] = {"clients": tested, "domains": len(self.domains) > 1}
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
    def figures(self) -> tuple[Figure, ...]:
        """All figures."""
        return (*self.domain_figures, *self.client_figures)

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
    settings: list[Setting] = []
    repeated: list[LeftOutRun] = []
    for alike in _parted(runs, _setting_key):
        # Runs that did not record their images may stand on the only ones.
        by_data = _parted(alike, lambda run: run.summary.data_digest)
        recorded = [same for same in by_data if same[0].summary.data_digest is not None]
        for members in by_data if len(recorded) > 1 else [alike]:
            methods, older = _methods(members)
            settings.append(Setting(setting_label(members[0]), "", members[0].domains, methods))
            repeated += older
    return _labelled(settings), sorted(repeated, key=lambda run: run.path)


def _parted(things: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Part things by a key, in the order in which each of its values appears first."""
    parts: dict[Hashable, list[T]] = {}
    for thing in things:
        parts.setdefault(key(thing), []).append(thing)
    return list(parts.values())


def _setting_key(run: FinishedRun) -> str:
    # Domains and rounds of the records: a configuration may say less than it means.
    alike = [setting_values(run), sorted(run.domains), run.summary.rounds]
    return json.dumps(alike, sort_keys=True)


def _methods(runs: Sequence[FinishedRun]) -> tuple[tuple[Method, ...], list[LeftOutRun]]:
    methods: list[Method] = []
    repeated: list[LeftOutRun] = []
    for members in _parted(runs, strategy_name):
        name = strategy_name(members[0])
        swept = _differences([method_values(run) for run in members])
        labels = [", ".join([name, *own]) for own in swept]
        for same in _parted(zip(labels, members, strict=True), lambda labelled: labelled[0]):
            own = [run for _, run in same]
            own.sort(key=lambda run: (run.summary.seed, run.folder.finished_at, run.path))
            newest = {run.summary.seed: run for run in own}
            methods.append(Method(same[0][0], name, newest))
            for run in own:
                later = newest[run.summary.seed]
                where = os.path.relpath(later.path, run.path.parent)
                reason = f"the same was run again later: {where}"
                if run is not later:
                    repeated.append(LeftOutRun(run.path, "repeated", reason))
    return tuple(sorted(methods, key=lambda method: _natural(method.label))), repeated


def _differences(contents: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Return for each of some contents, as ``key=value``, in what not all are the same."""
    keys = dict.fromkeys(key for content in contents for key in content)
    differing = [key for key in keys if len({content.get(key) for content in contents}) > 1]
    return [[f"{key}={content.get(key, 'absent')}" for key in differing] for content in contents]


def _labelled(settings: Sequence[Setting]) -> list[Setting]:
    """Give settings labels and slugs that tell them apart."""
    longer: list[Setting] = []
    for same in _parted(settings, lambda setting: setting.label):
        contents = [{"data": _data(each), **setting_values(each.runs[0])} for each in same]
        for setting, own in zip(same, _differences(contents), strict=True):
            label = " · ".join([setting.label, *own[:_MOST_DIFFERENCES]])
            longer.append(replace(setting, label=label))
    labelled: list[Setting] = []
    for setting in sorted(longer, key=lambda setting: _natural(setting.label)):
        label = _unused(setting.label, {other.label for other in labelled}, " ({})")
        words = re.sub(r"\([^)]*\)", "", label.lower())
        slug = re.sub(r"[^a-z0-9.=]+", "-", words).strip("-.")[:80].rstrip("-.")
        slug = _unused(slug or "setting", {other.slug for other in labelled}, "-{}")
        labelled.append(replace(setting, label=label, slug=slug))
    return labelled


def _data(setting: Setting) -> str:
    digests = [run.summary.data_digest for run in setting.runs]
    return next((digest[:8] for digest in digests if digest is not None), "not recorded")


def _unused(name: str, used: set[str], pattern: str) -> str:
    candidates = (name, *(name + pattern.format(number) for number in range(2, len(used) + 2)))
    return next(candidate for candidate in candidates if candidate not in used)


def _natural(label: str) -> list[tuple[int, float, str]]:
    """Return a key to sort by, in which beta=0.5 comes before beta=10."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label.lower())
    return [
        (1, float(part), "") if index % 2 else (0, 0.0, part) for index, part in enumerate(parts)
    ]
