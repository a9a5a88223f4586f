"""What the page of a run shows: from figures by round to tiles, charts and a table of clients.

Figures named ``accuracy/oslo`` and ``accuracy/bergen`` are of the family ``accuracy``, which is a
chart. Members named ``client_3`` are clients.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fedpw_flwr.report.charts import Chart, FloatArray, Line, line_chart
from fedpw_flwr.report.templates import BASE, RUN

if TYPE_CHECKING:
    from jinja2 import Template

_NAMED, _THIN = 8, 60
_SERVED = ("acc", "auc", "loss")
# By family: title, what it says, and its unit: × is what each would have if all had the same.
_KNOWN = {
    "weight": ("Aggregation weight", "Whom the server listens to; 1 is an equal weight.", "×"),
    "p": ("Direction term p", "Whose updates agree with the others'; 1 is an equal share.", "×"),
    "q": ("Loss term q", "Whose data the model serves badly; 1 is an equal share.", "×"),
    "loss": ("Training loss", "As the clients report it.", ""),
    "drop-rate": ("Drop rate", "Share of an update's entries that is masked.", ""),
    "share": ("Share of data", "By which FedAvg would weight clients; 1 is an equal share.", "×"),
}


@dataclass
class Run:
    """What is known of a run so far.

    `figures` are by family, member and round; those of the family "" are of none. `evaluated` are
    figures of single clients by round, `notes` what the log warned of in a round, `groups` by
    client. `total` is the number of rounds, `last` the last one so far, `seconds` what the newest
    ones took. `waiting` says which clients are waited for, `ending` is empty while the run goes on.
    """

    title: str
    settings: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[int, str] = field(default_factory=dict)
    total: int = 0
    last: int = 0
    figures: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    evaluated: dict[int, Mapping[str, float]] = field(default_factory=dict)
    notes: list[tuple[int, str]] = field(default_factory=list)
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    waiting: str = ""
    ending: str = ""
    failed: bool = False

    def add(self, server_round: int, numbers: Mapping[str, float]) -> None:
        """Add a round's figures by name."""
        self.last = server_round
        for name, value in numbers.items():
            family, _, member = name.partition("/")
            if not member or family in ("train", "evaluate", "clients"):
                family, member = "", name
            elif family in _KNOWN and not member.startswith("client_"):
                family = f"{family} of the global model"
            self.figures.setdefault(family, {}).setdefault(member, {})[server_round] = value


def page(run: Run) -> str:
    """Return the page of a run as HTML, in which every text is escaped."""
    families = {name: Family.of(name, each) for name, each in run.figures.items() if name}
    scalars, served = run.figures.get("", {}), _served(families)
    typical = sum(run.seconds) / max(len(run.seconds), 1)
    now = datetime.now().astimezone()
    return template("run.html").render(
        title=f"{run.title}: round {run.last}",
        refresh=None if run.ending else math.ceil(max(3, min(60, typical))),
        run=run,
        typical=typical,
        left=timedelta(seconds=round(typical * max(run.total - run.last, 0))),
        written=f"{now:%Y-%m-%d %H:%M:%S %Z}",
        written_at=int(now.timestamp()),
        patience=math.ceil(max(2, 5 * max(run.seconds, default=120) / 60)),
        tiles=[*_tiles(served, scalars)],
        charts=[*_charts(run, families, served), *_single(scalars, families, served)],
        clients=_clients(run, families),
        scalars={name: by_round[max(by_round)] for name, by_round in scalars.items()},
        kept={"evaluated": run.evaluated, "notes": run.notes},
    )


@dataclass(frozen=True)
class Family:
    """Figures by round (rows) and member (columns), NaN where a member has none."""

    title: str
    note: str
    unit: str
    rounds: FloatArray
    members: Sequence[str]
    values: FloatArray

    @classmethod
    def of(cls, name: str, members: Mapping[str, Mapping[int, float]]) -> Self:
        """Return a family of figures by member and round, in the unit in which it is shown."""
        rounds = sorted({number for by_round in members.values() for number in by_round})
        rows = [[of.get(number, math.nan) for of in members.values()] for number in rounds]
        # A client may report whatever it likes.
        values = np.clip(np.array(rows, dtype=np.float64), -1e30, 1e30)
        plain = "AUC" if name == "auc" else name.replace("_", " ").replace("-", " ").capitalize()
        title, note, unit = _KNOWN.get(name, (plain, "", "%" if "acc" in name.lower() else ""))
        if unit == "×":
            mean = _mean(values)[:, None]
            values = values / np.where(mean == 0, math.nan, mean)
        # Shares or percents: what most members have, for one of them may lie.
        if unit == "%" and np.median(np.fmax.reduce(values)) <= 1:
            values = 100 * values
        return cls(title, note, unit, np.array(rounds, dtype=np.float64), list(members), values)

    @property
    def last_seen(self) -> FloatArray:
        """The figures, with each member's one before where it has none in a round."""
        filled = self.values.copy()
        for before, row in pairwise(filled):
            np.copyto(row, before, where=np.isnan(row))
        return filled

    def summary(self) -> dict[str, FloatArray]:
        """Return mean, worst and spread (ddof = 1) by round."""
        worst = np.nanmax if "loss" in self.title.lower() else np.nanmin
        mean = _mean(self.values)
        several = np.isfinite(self.values).sum(axis=1)
        squares = np.nansum((self.values - mean[:, None]) ** 2, axis=1)
        spread = np.sqrt(squares / np.where(several > 1, several - 1, math.nan))
        return {"mean": mean, "worst": worst(self.values, axis=1), "spread": spread}

    def chart(self, lines: Sequence[Line]) -> Chart:
        """Return the family's chart."""
        level = 1.0 if self.unit == "×" else math.nan
        return line_chart(self.title, self.note, self.rounds, lines, self.unit, level)


@cache
def template(name: str) -> Template:
    """Return a template that escapes whatever text it is given."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    loader = DictLoader({"base.html": BASE, "run.html": RUN})
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template(name)


def _mean(values: FloatArray) -> FloatArray:
    """Return the mean of each row over the figures that there are; NaN where there are none."""
    number = np.isfinite(values).sum(axis=1)
    return np.asarray(np.nansum(values, axis=1) / np.where(number, number, math.nan))


def _served(families: Mapping[str, Family]) -> Family | None:
    """Return the figures that say how well the model serves everyone, if there are such."""
    own = [name for name in families if name not in _KNOWN]
    own.sort(key=lambda name: len(families[name].members) == 1)
    likely = (name for word in _SERVED for name in own if word in name.lower())
    return families.get(next(likely, ""))


def _tiles(
    served: Family | None, scalars: Mapping[str, Mapping[int, float]]
) -> Iterator[tuple[str, str, str]]:
    """Yield what matters most: its name, its figure, what to know of it."""
    if served is not None:
        mean, worst, spread = (values[-1] for values in served.summary().values())
        who = served.members[int(np.nanargmin(np.abs(served.values[-1] - worst)))]
        after = f"{served.title.lower()}, round {served.rounds[-1]:.0f}"
        yield "Mean", f"{mean:.3g} {served.unit}", after
        yield "Worst", f"{worst:.3g} {served.unit}", who.replace("client_", "client ")
        if math.isfinite(spread):
            yield "Spread", f"{spread:.3g}", "standard deviation between them"
    totals = dict.fromkeys(("quarantined", "failed", "empty", "bounded"), 0)
    for fate, phase, own in product(totals, ("train/", "evaluate/"), ("", "fedpw-")):
        totals[fate] += int(sum(scalars.get(f"{phase}{own}{fate}", {}).values()))
    told = ", ".join(f"{count} {fate}" for fate, count in totals.items() if count)
    yield "Set aside or bounded", str(sum(totals.values())), told or "no reply so far"


def _charts(run: Run, families: Mapping[str, Family], served: Family | None) -> Iterator[Chart]:
    """Yield the charts, the most important first."""
    looks: dict[str, str] = {}
    if served is not None:
        mean, worst, spread = served.summary().values()
        both = [Line(mean, "ink bold", "mean"), Line(worst, "ink dash", "worst")]
        yield served.chart(_lines(run, served, looks))
        yield replace(served, title="Mean and worst").chart(both)
        if np.isfinite(spread).any():
            note = f"Standard deviation between them{', in points' if served.unit else ''}."
            line = Line(spread, "ink", "spread")
            yield replace(served, title="Spread", note=note, unit="").chart([line])
    for name in dict.fromkeys((*_KNOWN, *families)):
        if name in families and families[name] is not served:
            yield families[name].chart(_lines(run, families[name], looks))


def _single(
    scalars: Mapping[str, Mapping[int, float]],
    families: Mapping[str, Family],
    served: Family | None,
) -> Iterator[Chart]:
    """Yield charts of figures that stand alone and say how well the model serves.

    Where the page has them by domain, what is computed of these would only be said twice.
    """
    if served is not None and not served.title.startswith("Clients'"):
        return
    for name, by_round in scalars.items():
        kind, _, own = name.rpartition("/")
        twice = kind in ("train", "clients") or (kind and f"clients' {own}" in families)
        if not twice and any(word in own.lower() for word in _SERVED):
            family = Family.of(own, {own: by_round})
            note = "As the clients' evaluation gave it." if kind else "As evaluated by the server."
            line = Line(family.values[:, 0], "ink bold", own)
            yield replace(family, note=note).chart([line])


def _lines(run: Run, family: Family, looks: dict[str, str]) -> list[Line]:
    """Return a family's lines, labelled as far as labels have room; `looks` are by label.

    More than that are thin: with the mean of each group, or else with those labelled that ended
    highest and lowest. Of very many the thin lines are a sample.
    """

    def line(values: FloatArray, label: str) -> Line:
        dash = " dash" if len(looks) % 12 >= 6 else ""
        look = looks.setdefault(label, f"c{len(looks) % 6}{dash}")
        return Line(values, look, label.replace("client_", "client "))

    columns = dict(zip(family.members, family.values.T, strict=True))
    last_seen = family.last_seen
    groups = np.array([_group(run, member) for member in family.members])
    names = dict.fromkeys(groups.tolist())
    if 1 < len(names) <= _NAMED:
        means = [line(_mean(last_seen[:, groups == name]), name) for name in names]
        thin = [Line(columns[m], f"{looks[_group(run, m)]} thin") for m in _sample(family.members)]
        return [*thin, *means]
    order = [family.members[index] for index in np.argsort(last_seen[-1])]
    named = order if len(order) <= _NAMED else [*order[:2], *order[-2:]]
    thin = [Line(columns[m], "thin") for m in _sample(family.members) if m not in named]
    return [*thin, *(line(columns[member], member) for member in columns if member in named)]


def _sample(members: Sequence[str]) -> Sequence[str]:
    return members[:: math.ceil(len(members) / _THIN)]


def _group(run: Run, member: str) -> str:
    client = member.removeprefix("client_")
    return run.groups.get(int(client), "") if client.isdecimal() else ""


def _clients(run: Run, families: Mapping[str, Family]) -> dict[str, Any]:
    """Return the table of clients: headings, and by client group, last figures and last round."""
    shown = [family for family in families.values() if family.members[0].startswith("client_")]
    found: dict[str, tuple[dict[str, float], list[float]]] = {}
    for family in shown:
        for member, values in zip(family.members, family.values.T, strict=True):
            figures, rounds = found.setdefault(member, ({}, [0.0]))
            there = np.isfinite(values)
            if there.any():
                figures[family.title] = float(values[there][-1])
                rounds.append(float(family.rounds[there][-1]))
    return {
        "headings": {family.title: family.unit for family in shown},
        "rows": [
            (member.removeprefix("client_"), _group(run, member), figures, int(max(rounds)))
            for member, (figures, rounds) in sorted(found.items(), key=lambda c: (len(c[0]), c[0]))
        ],
    }
