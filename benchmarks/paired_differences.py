"""Print paired differences between two strategies over seeds as a Markdown table.

    python benchmarks/paired_differences.py --base fedavg --against fedpw multirun/2026-01-01/*

Runs are paired by seed. Figures are the means of the last three rounds, in %, over the domains'
test sets: AVG, STD (ddof = 1) and worst domain.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

from fedpw_flwr.experiment.records import RunSummary
from fedpw_flwr.experiment.run_folder import RunFolder, RunFolderError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--base", default="fedavg", help="strategy to compare with")
    parser.add_argument("--against", default="fedpw", help="strategy that is compared")
    arguments = parser.parse_args()
    try:
        runs = _by_strategy(arguments.runs)
        print(_table(runs, arguments.base, arguments.against))
    except (RunFolderError, ValueError) as error:
        sys.exit(f"paired_differences: {error}")


def _by_strategy(folders: list[Path]) -> dict[str, dict[int, RunSummary]]:
    runs: dict[str, dict[int, RunSummary]] = {}
    for folder in folders:
        summary = RunFolder(folder).read_summary()
        seeds = runs.setdefault(summary.strategy, {})
        if summary.seed in seeds:
            raise ValueError(f"two runs of {summary.strategy} with seed {summary.seed}")
        seeds[summary.seed] = summary
    return runs


def _table(runs: Mapping[str, Mapping[int, RunSummary]], base: str, against: str) -> str:
    seeds = sorted(set(runs.get(base, {})) & set(runs.get(against, {})))
    if not seeds:
        raise ValueError(f"no seed has both a {base} and a {against} run; found {sorted(runs)}")
    lines = [
        f"| seed | {base}: AVG / STD / worst | {against}: AVG / STD / worst "
        "| difference in AVG | in STD | in worst |",
        "|---|---|---|---|---|---|",
    ]
    differences = []
    for seed in seeds:
        first, second = _figures(runs[base][seed]), _figures(runs[against][seed])
        difference = [b - a for a, b in zip(first, second, strict=True)]
        differences.append(difference)
        lines.append(
            f"| {seed} | {_absolute(first)} | {_absolute(second)} | {_signed(difference)} |"
        )
    means = [statistics.fmean(column) for column in zip(*differences, strict=True)]
    lines.append(f"| mean | | | {_signed(means)} |")
    return "\n".join(lines)


def _figures(summary: RunSummary) -> list[float]:
    spread = summary.last_3
    return [100 * spread.mean, 100 * spread.std, 100 * spread.worst]


def _absolute(figures: list[float]) -> str:
    return " / ".join(f"{figure:.1f}" for figure in figures)


def _signed(figures: list[float]) -> str:
    return " | ".join(f"{figure:+.1f}" for figure in figures)


if __name__ == "__main__":
    main()
