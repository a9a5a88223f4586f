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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--data", type=Path, help="folder with the archives of the four domains")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=20, help="of each run")
    (table,) = tables(parser.parse_args())
    print(table.markdown())


def tables(given: argparse.Namespace) -> list[Table]:
    if given.tiny:
        return [accuracy_table(None, (0,), 2, tiny=True)]
    return [accuracy_table(given.data, given.seeds, given.rounds)]


if __name__ == "__main__":
    main()
