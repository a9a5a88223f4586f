"""The tables of a comparison, as rows of text: Markdown and the terminal show the same ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedpw_flwr.experiment.comparison.figures import CLIENT_FIGURES, DOMAIN_FIGURES, Figure
from fedpw_flwr.experiment.comparison.settings import Method, Setting
from fedpw_flwr.experiment.comparison.statistics import (
    FEWEST_FOR_WILCOXON,
    LAST_ROUND,
    OverSeeds,
    PairedDifference,
    Window,
    holm_corrected,
    near_chance,
    over_seeds,
    paired_difference,
    rounds_to_target,
)

__all__ = [
    "TESTED_CLIENT_FIGURES",
    "UNKNOWN",
    "Table",
    "differences_table",
    "figure_heading",
    "figures_table",
    "mean_and_deviation",
    "mean_of",
    "target_table",
    "tested_figures",
]

UNKNOWN = "–"

_LEVEL = 0.05

TESTED_CLIENT_FIGURES = tuple(
    figure
    for figure in CLIENT_FIGURES
    if figure.key.removeprefix("clients.") in ("mean", "std", "worst_10", "best_10", "angle")
)
"""Those that are tested: the more are, the more seem to differ by chance."""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes
    ----------
    columns : tuple[str, ...]
        Their headings; the first column holds names and all others figures.
    rows : tuple[tuple[str, ...], ...]
        As many cells each as there are columns.
    best : frozenset[tuple[int, int]]
        Places (row, column) of the cells with the best figure of their column.
    notes : tuple[str, ...]
        What one has to know to read it, a sentence each.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()
    notes: tuple[str, ...] = ()


def figures_table(setting: Setting, figures: Sequence[Figure], window: Window) -> Table:
    """Tabulate figures of all methods, over their seeds.

    A method near chance is marked and never the best of a column. A column in which all are equal
    has no best.
    """
    rows: list[tuple[str, ...]] = []
    means: list[list[float]] = []
    ranked = [not near_chance(setting, method, window) for method in setting.methods]
    for method in setting.methods:
        values = [over_seeds(method, window, figure.key) for figure in figures]
        cells = [mean_and_deviation(value) for value in values]
        rows.append((_name(setting, method, window), str(len(method.runs)), *cells))
        means.append([value.mean for value in values])
    best: set[tuple[int, int]] = set()
    if len(rows) > 1:
        for place, figure in enumerate(figures):
            shown = [round(row[place], 2) for row in means]
            places = [
                row for row, value in enumerate(shown) if ranked[row] and math.isfinite(value)
            ]
            if not places:
                continue
            known = [shown[row] for row in places]
            if len(known) > 1 and min(known) == max(known):
                continue
            top = max(known) if figure.higher_is_better else min(known)
            best |= {(row, place + 2) for row in places if shown[row] == top}
    headings = (figure_heading(figure) for figure in figures)
    return Table(("method", "seeds", *headings), tuple(rows), frozenset(best))


def differences_table(setting: Setting, reference: Method, window: Window) -> Table:
    """Tabulate each method's difference to the reference, seed by seed, with paired tests."""
    figures = tested_figures(setting)
    rows: list[tuple[str, ...]] = []
    p_values: list[float] = []
    for method in setting.methods:
        if method is reference:
            continue
        found = [paired_difference(method, reference, window, figure.key) for figure in figures]
        p_values += [each.p_t for each in found if math.isfinite(each.p_t)]
        common = max((len(difference.seeds) for difference in found), default=0)
        rows.append((_name(setting, method, window), str(common), *map(_difference, found)))
    headings = (figure_heading(figure, of_whom=True) for figure in figures)
    notes = _test_notes(rows, p_values)
    return Table(("method", "common seeds", *headings), tuple(rows), notes=notes)


def target_table(setting: Setting, target: float) -> Table:
    """Tabulate the round in which each seed first reached a mean accuracy in percent."""
    rows = []
    means = []
    for method in setting.methods:
        found = rounds_to_target(method, target)
        each = (
            f"{'not reached' if number is None else number}" for number in found.rounds.values()
        )
        summary = OverSeeds.of([math.nan if n is None else n for n in found.rounds.values()])
        rows.append(
            (
                _name(setting, method, LAST_ROUND),
                f"{len(found.reached)} of {len(found.rounds)}",
                mean_and_deviation(summary, digits=1),
                ", ".join(each),
            )
        )
        means.append(math.nan if near_chance(setting, method, LAST_ROUND) else found.mean)
    known = [mean for mean in means if math.isfinite(mean)]
    best = {(row, 2) for row, mean in enumerate(means) if known and mean == min(known)}
    return Table(
        ("method", "seeds that reached it", "rounds", "each seed"),
        tuple(rows),
        frozenset(best) if len(rows) > 1 else frozenset(),
        ("The mean is given only where all seeds reached the target.",),
    )


def mean_of(setting: Setting) -> str:
    """Say what the mean accuracy is that methods race to."""
    if len(setting.domains) == 1:
        return "accuracy on the test set"
    return "mean over the domains' test sets"


def tested_figures(setting: Setting) -> tuple[Figure, ...]:
    """Return the figures by which methods are compared with a reference."""
    over_domains = DOMAIN_FIGURES if len(setting.domains) > 1 else DOMAIN_FIGURES[:1]
    return (*over_domains, *(TESTED_CLIENT_FIGURES if setting.client_figures else ()))


def mean_and_deviation(value: OverSeeds, digits: int = 2) -> str:
    """Write mean ± standard deviation; the mean alone where there is one seed."""
    if not math.isfinite(value.mean):
        return UNKNOWN
    mean = f"{value.mean:.{digits}f}"
    return f"{mean} ± {value.std:.{digits}f}" if math.isfinite(value.std) else mean


def figure_heading(figure: Figure, *, of_whom: bool = False) -> str:
    """Name a column; `of_whom` tells clients' figures from the domains' in a table with both."""
    whose = "clients' " if of_whom and figure in CLIENT_FIGURES else ""
    return f"{whose}{figure.label}" + (", °" if figure.unit == "°" else "")


def _name(setting: Setting, method: Method, window: Window) -> str:
    return method.label + (" (near chance)" if near_chance(setting, method, window) else "")


def _difference(found: PairedDifference) -> str:
    if not math.isfinite(found.mean):
        return UNKNOWN
    text = f"{found.mean:+.2f}"
    if math.isfinite(found.std):
        text += f" ± {found.std:.2f}"
    tests = []
    if math.isfinite(found.p_t):
        tests.append(_probability("p", found.p_t))
    if math.isfinite(found.p_wilcoxon):
        tests.append(_probability("W", found.p_wilcoxon))
    return f"{text} ({', '.join(tests)})" if tests else text


def _after_correction(p_values: Sequence[float]) -> str:
    below = sum(value < _LEVEL for value in p_values)
    left = sum(value < _LEVEL for value in holm_corrected(p_values))
    return (
        f"Of {len(p_values)} in this table {below or 'none'} {'is' if below <= 1 else 'are'} below "
        f"{_LEVEL}, and {left or 'none'} after Holm's correction."
    )


def _probability(name: str, value: float) -> str:
    return f"{name} < 0.001" if value < 0.001 else f"{name} = {value:.3f}"


def _test_notes(rows: Sequence[Sequence[str]], p_values: Sequence[float]) -> tuple[str, ...]:
    seeds = {int(row[1]) for row in rows}
    if not p_values:
        return ("No p-values: they take two common seeds or more, and differences that vary.",)
    said = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    notes = [
        f"p: two-sided paired t-test over {said} common seeds, not corrected for the number of "
        f"comparisons. {_after_correction(p_values)}"
    ]
    if max(seeds) >= FEWEST_FOR_WILCOXON:
        notes.append(f"W: Wilcoxon's signed-rank test, from {FEWEST_FOR_WILCOXON} seeds on.")
    return tuple(notes)
