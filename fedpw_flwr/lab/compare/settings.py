"""Which runs can be compared: settings, the methods in each, and the seeds of a method.

Runs belong to one *setting* if their configurations are the same apart from ``seed``, ``runtime``,
``resume``, where the data lie, and ``strategy``: same data, partition, model, local training and
rounds. How many clients a round trains is configured with the strategy, and is of the setting too.
So are the images themselves: files may change under a configuration that stays the same.
Within a setting a *method* is a strategy's name; where runs of one name differ in their strategy's
keys (a sweep over beta), every value is a method of its own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from fedpw_flwr.lab.compare.configured import (
    differing_keys,
    group_of,
    method_values,
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
from fedpw_flwr.lab.compare.labels import setting_label
from fedpw_flwr.lab.compare.runs import ComparisonError, FinishedRun, LeftOutRun

__all__ = ["Method", "Setting", "group_runs"]

_ABSENT = "absent"
_MOST_DIFFERENCES = 4


@dataclass(frozen=True, eq=False)
class Method:
    """A strategy with its own settings, run with some seeds.

    Attributes
    ----------
    label : str
        Unique within its setting, such as ``"fedpw"`` or ``"fedpw, beta=0.1"``.
    strategy : str
        The strategy's name.
    runs : Mapping[int, FinishedRun]
        By seed, ascending.
    """

    label: str
    strategy: str
    runs: Mapping[int, FinishedRun]

    def has(self, key: str) -> bool:
        """Tell whether every run has a figure."""
        return all(key in run.history for run in self.runs.values())


@dataclass(frozen=True, eq=False)
class Setting:
    """What several methods were run on.

    Attributes
    ----------
    label : str
        Unique among the settings compared: data, partition, model and rounds.
    slug : str
        The label as a folder's name, unique too.
    domains : tuple[str, ...]
        Names of the domains, in the order recorded.
    methods : tuple[Method, ...]
        At least one; by name, and by the values of what was swept.
    """

    label: str
    slug: str
    domains: tuple[str, ...]
    methods: tuple[Method, ...]

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
            (method.label, seed): run.history
            for method in self.methods
            for seed, run in method.runs.items()
        }
        return pd.concat(histories, names=["method", "seed"])

    @property
    def classes(self) -> int | None:
        """Number of classes of the data; None where no run says it."""
        for run in self.runs:
            number = group_of(run, "dataset").get("num_classes")
            if isinstance(number, int):
                return number
            if run.holdings is not None and run.holdings.clients:
                return len(run.holdings.clients[0].train)
        return None

    @property
    def bases(self) -> tuple[Basis, ...]:
        """Whom accuracies can be compared between: clients first, then several domains."""
        bases: list[Basis] = []
        if any(method.has("clients.mean") for method in self.methods):
            bases.append("clients")
        if len(self.domains) > 1:
            bases.append("domains")
        return tuple(bases)

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

    def reference(self, wanted: str | None) -> Method | None:
        """Find the method that the others are compared with.

        Parameters
        ----------
        wanted : str | None
            A method's label, or the name of its strategy; None: fedavg if it is there, else the
            first method.

        Returns
        -------
        Method | None
            None if this setting has no such method.
        """
        name = "fedavg" if wanted is None else wanted
        for method in self.methods:
            if method.label == name:
                return method
        for method in self.methods:
            if method.strategy == name:
                return method
        return self.methods[0] if wanted is None else None


def group_runs(
    runs: Sequence[FinishedRun],
) -> tuple[tuple[Setting, ...], tuple[LeftOutRun, ...]]:
    """Put runs together into settings and methods.

    Parameters
    ----------
    runs : Sequence[FinishedRun]
        Runs of any kind, at least one.

    Returns
    -------
    tuple[tuple[Setting, ...], tuple[LeftOutRun, ...]]
        The settings, by label; and the runs of which there is a newer one with the same
        configuration and seed.

    Raises
    ------
    ComparisonError
        If there are no runs.
    """
    if not runs:
        raise ComparisonError("there is no finished run to compare")
    by_setting: dict[str, list[FinishedRun]] = {}
    for run in runs:
        by_setting.setdefault(_setting_key(run), []).append(run)
    repeated: list[LeftOutRun] = []
    settings = []
    for members in (group for alike in by_setting.values() for group in _by_data(alike)):
        methods, older = _methods(members)
        repeated += older
        settings.append(Setting(setting_label(members[0]), "", members[0].domains, methods))
    return _labelled(settings), tuple(sorted(repeated, key=lambda run: run.path))


# ------------------------------------------------------------------------------- what belongs where


def _setting_key(run: FinishedRun) -> str:
    # Domains and rounds of the records: a configuration may say less than it means.
    return json.dumps(
        [setting_values(run), sorted(run.domains), run.summary.rounds], sort_keys=True
    )


def _by_data(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Part runs on different images; those that did not record theirs may be on the only ones."""
    by_digest: dict[str | None, list[FinishedRun]] = {}
    for run in runs:
        by_digest.setdefault(run.summary.data_digest, []).append(run)
    known = [digest for digest in by_digest if digest is not None]
    return list(by_digest.values()) if len(known) > 1 else [list(runs)]


def _methods(runs: Sequence[FinishedRun]) -> tuple[tuple[Method, ...], list[LeftOutRun]]:
    by_name: dict[str, list[FinishedRun]] = {}
    for run in runs:
        by_name.setdefault(strategy_name(run), []).append(run)
    methods: list[Method] = []
    repeated: list[LeftOutRun] = []
    for name, members in by_name.items():
        swept = differing_keys(map(method_values, members))
        by_label: dict[str, list[FinishedRun]] = {}
        for run in members:
            own = method_values(run)
            label = ", ".join([name, *(f"{key}={own.get(key, _ABSENT)}" for key in swept)])
            by_label.setdefault(label, []).append(run)
        for label, same in by_label.items():
            newest, older = _newest_of_each_seed(same)
            methods.append(Method(label, name, newest))
            repeated += older
    return tuple(sorted(methods, key=lambda method: _natural(method.label))), repeated


def _newest_of_each_seed(
    runs: Sequence[FinishedRun],
) -> tuple[dict[int, FinishedRun], list[LeftOutRun]]:
    newest: dict[int, FinishedRun] = {}
    for run in sorted(runs, key=lambda run: (run.summary.seed, run.finished_at, run.path)):
        newest[run.summary.seed] = run
    older = [
        LeftOutRun(
            run.path,
            "repeated",
            "the same was run again later: "
            + os.path.relpath(newest[run.summary.seed].path, run.path.parent),
        )
        for run in runs
        if newest[run.summary.seed] is not run
    ]
    return newest, older


# ------------------------------------------------------------------------------------------- labels


def _labelled(settings: Sequence[Setting]) -> tuple[Setting, ...]:
    """Give settings labels and slugs that tell them apart."""
    by_label: dict[str, list[Setting]] = {}
    for setting in settings:
        by_label.setdefault(setting.label, []).append(setting)
    labels: list[tuple[str, Setting]] = []
    for base, same in by_label.items():
        contents = [{"data": _data(setting), **setting_values(setting.runs[0])} for setting in same]
        differing = differing_keys(contents)[:_MOST_DIFFERENCES]
        for setting, own in zip(same, contents, strict=True):
            suffix = [f"{key}={own.get(key, _ABSENT)}" for key in differing]
            labels.append((" · ".join([base, *suffix]), setting))
    labelled: list[Setting] = []
    for label, setting in sorted(labels, key=lambda pair: _natural(pair[0])):
        unique = _unused(label, {other.label for other in labelled}, " ({})")
        words = re.sub(r"\([^)]*\)", "", unique.lower())
        slug = re.sub(r"[^a-z0-9.=]+", "-", words).strip("-.")[:80].rstrip("-.")
        slug = _unused(slug or "setting", {other.slug for other in labelled}, "-{}")
        labelled.append(replace(setting, label=unique, slug=slug))
    return tuple(labelled)


def _data(setting: Setting) -> str:
    digests = [run.summary.data_digest for run in setting.runs]
    return next((digest[:8] for digest in digests if digest is not None), "not recorded")


def _unused(name: str, used: set[str], pattern: str) -> str:
    candidates = (name, *(name + pattern.format(number) for number in range(2, len(used) + 2)))
    return next(candidate for candidate in candidates if candidate not in used)


def _natural(label: str) -> list[tuple[int, float, str]]:
    """Sort key by which beta=0.5 comes before beta=10."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label.lower())
    return [
        (1, float(part), "") if place % 2 else (0, 0.0, part) for place, part in enumerate(parts)
    ]
