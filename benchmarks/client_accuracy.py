"""Accuracy of whole runs: the plain loop, fedpw in float32 and in bfloat16, over seeds.

    python benchmarks/client_accuracy.py --rounds 40 --data DATA

The table beside client_loop.py's speeds, which says whether speed was bought with accuracy. Nine
runs take hours, so run.py does it on request only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from client_loop import accuracy_table
from report import Table

ROUNDS = 20
SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--data", type=Path, help="folder with the archives of the four domains")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each run")
    arguments = parser.parse_args()
    if arguments.tiny:
        printed = tables(tiny=True)
    else:
        printed = [accuracy_table(arguments.data, arguments.seeds, arguments.rounds)]
    print("\n\n".join(table.markdown() for table in printed))


def tables(tiny: bool = False) -> list[Table]:
    """Compare over the usual seeds; tiny: one seed, two rounds."""
    if tiny:
        return [accuracy_table(None, (0,), 2, tiny=True)]
    return [accuracy_table(None, SEEDS, ROUNDS)]


if __name__ == "__main__":
    main()
