"""Which runs can be compared: settings, the methods in each, and the seeds of a method.

Runs belong to one *setting* if their configurations are the same apart from ``strategy``, ``seed``,
``runtime``, ``resume`` and where the data lie: same data, partition, model, local training and
rounds. Within a setting a *method* is a strategy's name; where runs of one name differ in their
strategy's keys (a sweep over beta), every value is a method of its own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedpw_flwr.experiment.comparison.figures import (
    CLIENT_FIGURES,
    DOMAIN_FIGURES,
    Basis,
    Figure,
    accuracy_of,
)
from fedpw_flwr.experiment.comparison.runs import ComparisonError, FinishedRun, LeftOutRun

__all__ = ["Method", "Setting", "group_runs"]

_NOT_OF_THE_SETTING = ("strategy", "seed", "runtime", "resume")
# How long a server waits and where it computes is no property of a method.
_NOT_OF_THE_METHOD = ("name", "wait_for_clients", "when_missing", "device")
_ABSENT = "absent"
_MOST_DIFFERENCES = 4
_MOST_DOMAINS = 6


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
        return all(key in run.history.figures for run in self.runs.values())


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
        """Figures over the clients' own test pictures; none where no method has them."""
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
    for members in by_setting.values():
        methods, older = _methods(members)
        repeated += older
        settings.append(Setting(_base_label(members[0]), "", members[0].history.domains, methods))
    return _labelled(settings), tuple(sorted(repeated, key=lambda run: run.path))


# ------------------------------------------------------------------------------- what belongs where


def _setting_key(run: FinishedRun) -> str:
    # Domains and rounds of the records: a configuration may say less than it means.
    return json.dumps(
        [_of_the_setting(run), sorted(run.history.domains), run.summary.rounds],
        sort_keys=True,
        default=str,
    )


def _of_the_setting(run: FinishedRun) -> dict[str, Any]:
    kept = {
        key: value for key, value in run.configuration.items() if key not in _NOT_OF_THE_SETTING
    }
    return _without_places(kept)


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


def _of_the_method(run: FinishedRun) -> dict[str, str]:
    strategy = run.configuration.get("strategy")
    keys = strategy if isinstance(strategy, Mapping) else {}
    kept = {key: value for key, value in keys.items() if key not in _NOT_OF_THE_METHOD}
    return _flat(_without_places(kept))


def _strategy_name(run: FinishedRun) -> str:
    strategy = run.configuration.get("strategy")
    name = strategy.get("name") if isinstance(strategy, Mapping) else None
    return str(name or run.summary.strategy)


def _methods(runs: Sequence[FinishedRun]) -> tuple[tuple[Method, ...], list[LeftOutRun]]:
    by_name: dict[str, list[FinishedRun]] = {}
    for run in runs:
        by_name.setdefault(_strategy_name(run), []).append(run)
    methods: list[Method] = []
    repeated: list[LeftOutRun] = []
    for name, members in by_name.items():
        swept = _differing(map(_of_the_method, members))
        by_label: dict[str, list[FinishedRun]] = {}
        for run in members:
            own = _of_the_method(run)
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
        contents = [_flat(_of_the_setting(setting.runs[0])) for setting in same]
        differing = _differing(contents)[:_MOST_DIFFERENCES]
        for setting, own in zip(same, contents, strict=True):
            suffix = [f"{key}={own.get(key, _ABSENT)}" for key in differing]
            labels.append((" · ".join([base, *suffix]), setting))
    labelled: list[Setting] = []
    for label, setting in sorted(labels, key=lambda pair: _natural(pair[0])):
        unique = _unused(label, {other.label for other in labelled}, " ({})")
        slug = re.sub(r"[^a-z0-9.=]+", "-", unique.lower()).strip("-.")[:80].rstrip("-.")
        slug = _unused(slug or "setting", {other.slug for other in labelled}, "-{}")
        labelled.append(replace(setting, label=unique, slug=slug))
    return tuple(labelled)


def _unused(name: str, used: set[str], pattern: str) -> str:
    candidates = (name, *(name + pattern.format(number) for number in range(2, len(used) + 2)))
    return next(candidate for candidate in candidates if candidate not in used)


def _base_label(run: FinishedRun) -> str:
    parts = (
        _dataset_label(run),
        _group_label(run, "partition", ("alpha",)),
        _clients_label(run),
        _group_label(run, "model", ("depth", "width")),
        f"{run.summary.rounds} rounds" if run.summary.rounds != 1 else "1 round",
    )
    return " · ".join(part for part in parts if part)


def _dataset_label(run: FinishedRun) -> str:
    dataset = _group(run, "dataset")
    if dataset.get("name"):
        return str(dataset["name"])
    domains = run.history.domains
    if len(domains) > _MOST_DOMAINS:
        return f"{len(domains)} domains ({', '.join(domains[:3])}, …)"
    return ", ".join(domains)


def _group_label(run: FinishedRun, group: str, told: Sequence[str]) -> str:
    content = _group(run, group)
    name = str(content.get("name") or str(content.get("_target_", "")).rpartition(".")[2])
    values = [f"{key}={content[key]}" for key in told if content.get(key) is not None]
    return ", ".join(part for part in (name, *values) if part)


def _clients_label(run: FinishedRun) -> str:
    per_domain = _group(run, "partition").get("clients_per_domain")
    if not isinstance(per_domain, int):
        return ""
    return f"{per_domain * len(run.history.domains)} clients"


def _group(run: FinishedRun, name: str) -> Mapping[str, Any]:
    content = run.configuration.get(name)
    return content if isinstance(content, Mapping) else {}


def _differing(contents: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the keys that have not the same value everywhere, in order of first appearance."""
    everything = list(contents)
    keys = dict.fromkeys(key for content in everything for key in content)
    return [key for key in keys if len({content.get(key) for content in everything}) > 1]


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = _said(value)
    return flat


def _said(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def _natural(label: str) -> list[tuple[int, float, str]]:
    """Sort key by which beta=0.5 comes before beta=10."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label.lower())
    return [
        (1, float(part), "") if place % 2 else (0, 0.0, part) for place, part in enumerate(parts)
    ]
