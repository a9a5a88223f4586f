"""RESULTS.md and results/NAME, made of the runs that are kept."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pandas as pd
from experiments import PUBLISHED, TUNED_ON, Experiment
from report import Table

from fedpw_flwr.lab.compare.command import compare
from fedpw_flwr.lab.compare.markdown import remove_plots
from fedpw_flwr.lab.compare.runs import FinishedRun, find_runs
from fedpw_flwr.lab.compare.statistics import LEVEL, holm_corrected
from fedpw_flwr.lab.plots.labels import LEADER, label_points, panel_height, widest
from fedpw_flwr.lab.plots.looks import INK, give_looks
from fedpw_flwr.lab.plots.panels import new_page
from fedpw_flwr.lab.runs.written import number

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "results"
KEPT, REMARKS = "runs.tar.xz", "remarks.md"

LAST, WINDOW = 5, "last_5_rounds"
"""Figures are means of so many last rounds."""

LADDER = (20, 25, 30, 40, 50, 60, 80, 100, 120, 150, 200)
"""Numbers of rounds to choose among."""

CONVERGED = 0.5
"""Training has converged where the mean gains less, in points, in the last fifth of the rounds."""

GAINS = "gains.png"
NOT_RUN = "<!-- not run: takes hours, and needs the archives in DATA -->"
GAINS_SHOWN = f"![Gains of the mean and of the worst, by setting](results/{GAINS})"

FEDPW, EQUAL = "fedpw", "fedavg_equal"

LABELS = {
    "domains.mean": "AVG",
    "domains.std": "STD",
    "domains.worst": "worst",
    "aucs.mean": "mean AUC",
    "aucs.pooled": "pooled AUC",
    "clients.mean": "mean",
    "clients.std": "STD",
    "clients.worst_10": "worst 10 %",
}
"""Figures of RESULTS.md, as columns are called."""


# --- Which values are chosen ----------------------------------------------------------------------


@cache
def finished(one: Experiment) -> list[FinishedRun]:
    """Return an experiment's runs with their histories."""
    runs, left_out = find_runs([RESULTS / one.name / KEPT])
    assert not left_out, left_out
    return runs


def of_stage(one: Experiment, stage: str) -> list[FinishedRun]:
    """Return the runs of a stage."""
    return [run for run in finished(one) if stage_of(run) == stage]


def stage_of(run: FinishedRun) -> str:
    """Tell for which stage a run was made."""
    if run.summary.seed not in TUNED_ON:
        return "table"
    return "rates" if run.summary.strategy == "fedavg" else "tuning"


def at(run: FinishedRun, key: str, end: int) -> float:
    """Return a figure's mean over the last rounds up to one."""
    return float(run.history.loc[end - LAST + 1 : end, key].mean())


def over(runs: Iterable[FinishedRun], key: str, end: int) -> float:
    """Return the mean over seeds of what `at` returns."""
    return float(pd.Series([at(run, key, end) for run in runs]).mean())


def rates_of(one: Experiment) -> pd.DataFrame:
    """Return FedAvg's primary figures by learning rate and number of rounds, with the last gain.

    `gain` is by how much the mean rose in the last fifth of the rounds.
    """
    mean, worst = one.primary
    rows = []
    for rate in map(float, one.rates.split(",")):
        runs = [
            run for run in of_stage(one, "rates") if run.group("client")["learning_rate"] == rate
        ]
        for rounds in (each for each in LADDER if runs and one.fewest <= each <= one.longest):
            then, now = over(runs, mean, round(0.8 * rounds)), over(runs, mean, rounds)
            rows.append((rate, rounds, now, over(runs, worst, rounds), now - then))
    return pd.DataFrame(rows, columns=["rate", "rounds", "mean", "worst", "gain"])


def chosen_rate(rates: pd.DataFrame) -> tuple[float, int]:
    """Return learning rate and rounds: each rate's first converged ones, of these the best mean."""
    converged = rates[rates["gain"] < CONVERGED].groupby("rate").first()
    best = converged["mean"].idxmax()
    return float(best), int(converged.loc[best, "rounds"])


def tuning_of(one: Experiment) -> pd.DataFrame:
    """Return both primary figures, and their sum, of each value of each baseline's grid."""
    mean, worst = one.primary
    rows = []
    for method, grid in one.grids.items():
        key, _, values = grid.partition("=")
        for value in values.split(","):
            runs = [
                run
                for run in of_stage(one, "tuning")
                if run.summary.strategy == method and run.group("strategy")[key] == float(value)
            ]
            if runs:
                figures = over(runs, mean, one.rounds), over(runs, worst, one.rounds)
                rows.append((method, f"{key}={value}", *figures, sum(figures)))
    return pd.DataFrame(rows, columns=["method", "value", "mean", "worst", "sum"])


def chosen_values(tuning: pd.DataFrame) -> dict[str, str]:
    """Return of each baseline the value with the largest sum."""
    best = tuning.loc[tuning.groupby("method", sort=False)["sum"].idxmax()]
    return dict(zip(best["method"], best["value"], strict=True))


# --- The pages ------------------------------------------------------------------------------------


def write(one: Experiment) -> None:
    """Write results/NAME: how settings were chosen, and the comparison where there is a table."""
    folder = RESULTS / one.name
    (folder / "tuning.md").write_text(tuning_page(one), encoding="utf-8")
    names = [run.path.name for run in of_stage(one, "table")]
    if names:
        made = compare([folder / KEPT], only=names, output=folder, against="fedavg")
        text = made.read_text(encoding="utf-8")
        made.write_text(re.sub(r"!\[.*\n\n\*.*\*\n\n?", "", text), encoding="utf-8")
        # `fedpw-compare` makes them again.
        remove_plots(set(folder.glob("*.png")), folder)
        (folder / "comparison.html").unlink()


def tuning_page(one: Experiment) -> str:
    """Return the page on how learning rate, rounds and the baselines' values were chosen."""
    labels = [LABELS[key] for key in one.primary]
    rates = Table(
        "FedAvg by learning rate and rounds",
        ("learning rate", "rounds", *labels, "gain in the last fifth, points"),
        tuple(
            (f"{row.rate:g}", str(row.rounds), *map(number, (row.mean, row.worst, row.gain)))
            for row in rates_of(one).itertuples()
        ),
        f"Seeds {', '.join(map(str, TUNED_ON))}. Chosen: learning rate {one.learning_rate:g}, "
        f"{one.rounds} rounds.",
    )
    tuning = Table(
        "Baselines",
        ("method", "value", *labels, "sum"),
        tuple(
            (row.method, row.value, *map(number, (row.mean, row.worst, row.sum)))
            for row in tuning_of(one).itertuples()
        ),
        f"Seeds {', '.join(map(str, one.tuned_on))}, {one.rounds} rounds. Chosen: "
        f"{'; '.join(f'{method} {value}' for method, value in one.chosen.items())}.",
    )
    parts = (f"# {one.title}: how settings were chosen", rates.markdown(), tuning.markdown())
    return "\n\n".join(parts[: 3 if tuning.rows else 2]) + "\n"


def compared(one: Experiment) -> bool:
    """Return whether an experiment has a table."""
    return (RESULTS / one.name / "differences.csv").is_file()


def page() -> str:
    """Put RESULTS.md together."""
    parts = ["# Results", _text(RESULTS / "answer.md"), GAINS_SHOWN, _text(RESULTS / "preface.md")]
    for one in PUBLISHED:
        parts.append(f"## {one.title}")
        if not compared(one):
            parts.append("Not run yet, or not to its end.")
            continue
        commands = "\n".join(shlex.join(("fedpw", "-m", *words)) for words in one.sweeps("table"))
        parts += [
            _text(RESULTS / one.name / REMARKS),
            results_table(one),
            f"{NOT_RUN}\n```bash\n{commands}\n```",
        ]
        parts.append(
            f"All figures: [comparison](results/{one.name}/comparison.md), "
            f"[by run](results/{one.name}/comparison.csv), "
            f"[differences](results/{one.name}/differences.csv), "
            f"[tuning](results/{one.name}/tuning.md)."
        )
    if not all(map(compared, PUBLISHED)):
        parts.append(_text(RESULTS / "earlier.md"))
    return "\n\n".join(part for part in parts if part) + "\n"


def differences(one: Experiment) -> pd.DataFrame:
    """Return the differences to FedAvg in the primary figures, with Holm's p in `p_holm`."""
    found = pd.read_csv(RESULTS / one.name / "differences.csv")
    found = found[found["figure"].isin(one.primary) & (found["window"] == WINDOW)].copy()
    found["p_holm"] = holm_corrected(found["p_t"])
    return found


def draw_gains(out: Path) -> None:
    """Draw what FedPW, and equal weights, gain on FedAvg: a point a setting, with intervals."""
    points: list[tuple[str, str, list[float], list[float]]] = []
    for one in filter(compared, PUBLISHED):
        found = differences(one).set_index(["method", "figure"])
        for method in (FEDPW, EQUAL):
            rows = found.loc[[(method, key) for key in one.primary]]
            points.append((one.name, method, rows["difference"].tolist(), rows["margin"].tolist()))
    looks = give_looks(name for name, *_ in points)
    texts = [f"{name}, {method}" for name, method, *_ in points]
    figure, (axes,) = new_page(
        "What the mean and the worst gain on FedAvg",
        "Points of accuracy, with 95 % confidence intervals. Better is right and up.\n"
        "Filled: FedPW. Hollow: equal weights alone.",
        [panel_height(len(points) + 1, least=3.4)],
        width=6.1 + LEADER + widest(texts),
        labels=("gain of the mean (points)", "gain of the worst (points)"),
    )
    named = []
    for (name, method, (x, y), (dx, dy)), text in zip(points, texts, strict=True):
        face = {} if method == FEDPW else {"markerfacecolor": "white"}
        look = looks[name].points(9.0, edge=1.4) | face
        axes.errorbar(x, y, dy, dx, ecolor=looks[name].color, elinewidth=1.0, zorder=3)
        axes.plot(x, y, zorder=4, **look)
        named.append((x, y, text, look | {"markersize": 7.0}))
    axes.grid(axis="x")
    axes.axhline(0.0, color=INK, linewidth=1.0, zorder=1)
    axes.axvline(0.0, color=INK, linewidth=1.0, zorder=1)
    axes.margins(0.08)
    label_points(axes, named)
    figure.savefig(out, dpi=150)


def results_table(one: Experiment) -> str:
    """Return methods, their figures, and their differences to FedAvg."""
    made = pd.read_csv(RESULTS / one.name / "comparison.csv")
    methods = made[made["kind"] == "method"].set_index("method")
    found = differences(one).set_index(["method", "figure"])
    whose = ("clients",) if one.of_clients else ("domains", "aucs")
    shown = [key for key in LABELS if f"{WINDOW}.{key}" in methods and key.startswith(whose)]
    rows = []
    for method, figures in methods.iterrows():
        cells = [
            number(figures[f"{WINDOW}.{key}"], std=figures[f"{WINDOW}.{key}.sd"]) for key in shown
        ]
        if (method, one.primary[0]) in found.index:
            cells += [_difference(found.loc[(method, key)]) for key in one.primary]
        else:
            cells += ["", ""]
        rows.append((str(method), *cells))
    tested = found.reset_index().groupby("figure")["detectable"].median()
    note = (
        f"{methods['seeds'].max()} seeds. In brackets 95 % confidence intervals; **bold**: p < "
        f"{LEVEL} after Holm's correction over this table. In the median over the methods, "
        f"a true difference of {number(tested[one.primary[0]], 1)} points in "
        f"{LABELS[one.primary[0]]} and of {number(tested[one.primary[1]], 1)} in "
        f"{LABELS[one.primary[1]]} would have been found four times in five, before correction."
    )
    own = [own_difference(one, key) for key in one.primary]
    against_equal = "; ".join(
        f"{LABELS[key]} {_interval(middle, margin)}"
        for key, (middle, margin) in zip(one.primary, own, strict=True)
    )
    note += f" FedPW against equal weights: {against_equal}."
    header = (
        "method",
        *(LABELS[key] for key in shown),
        *(f"Δ {LABELS[key]}" for key in one.primary),
    )
    table = Table("", header, tuple(rows)).markdown()
    return f"{table.removeprefix('### ').strip()}\n\n{note}"


def own_difference(one: Experiment, key: str) -> tuple[float, float]:
    """Return FedPW's mean difference to equal weights, and half of its confidence interval."""
    made = pd.read_csv(RESULTS / one.name / "comparison.csv")
    runs = made[made["kind"] == "run"].pivot(
        index="seed", columns="method", values=f"{WINDOW}.{key}"
    )
    apart = runs[FEDPW] - runs[EQUAL]
    # The seeds are those of the table: an interval is as many standard deviations wide.
    row = differences(one).iloc[0]
    return float(apart.mean()), float(apart.std() * row["margin"] / row["difference.sd"])


def _difference(found: pd.Series) -> str:
    text = _interval(found["difference"], found["margin"])
    return f"**{text}**" if found["p_holm"] < LEVEL else text


def _interval(middle: float, margin: float) -> str:
    return f"{number(middle, sign=True)} [{number(middle - margin)}, {number(middle + margin)}]"


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""
