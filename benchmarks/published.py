"""Run the experiments of RESULTS.md, and write it: tables and pictures by `fedpw-compare`.

    python benchmarks/published.py --data DATA               # all sweeps: hours
    python benchmarks/published.py --data DATA digits pat2   # some of them
    python benchmarks/published.py --write                   # only RESULTS.md, from what is done

DATA is a folder of archives (mnist.npz, usps.npz, svhn.npz, mnistm.npz, fashion_mnist.npz,
cifar10.npz). A sweep that is begun again runs only what is missing, so this may be stopped at any
time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "RESULTS.md"
COMPARISONS = REPOSITORY / "results"

SEEDS = "seed=0,1,2"
ALL_METHODS = (
    "fedavg,fedavg_equal,fedprox,fedavgm,fedadam,qfedavg,afl,term,fedmgda_plus,fedheal,"
    "fedpw_server,fedpw,fedpw_pa,fedpw_awa"
)
RIVALS = "fedavg,qfedavg,term,fedheal,fedpw"
SMALL = ("model=cnn", "client.epochs=1", "rounds=40")


@dataclass(frozen=True)
class Published:
    """One comparison of RESULTS.md.

    Attributes
    ----------
    name : str
        Of its folder, and on the command line.
    sweeps : tuple[tuple[str, ...], ...]
        Overrides of each `fedpw -m` that belongs to it; DATA stands for the folder of the archives.
    against : str
        The method that the others are compared with.
    """

    name: str
    sweeps: tuple[tuple[str, ...], ...]
    against: str = "fedavg"


FOUR_DOMAINS = ("experiment=four_domains", "dataset.folder=DATA", SEEDS)


def _label_skew(dataset: str, partition: str) -> Published:
    overrides = (
        *(f"experiment={dataset}", f"partition={partition}", "dataset.archives_folder=DATA"),
        *(f"strategy={RIVALS}", SEEDS, *SMALL),
    )
    return Published(f"{dataset}-{partition}", (overrides,))


PUBLISHED = (
    Published("digits", ((*FOUR_DOMAINS, f"strategy={ALL_METHODS}"),)),
    *(
        _label_skew(dataset, partition)
        for dataset in ("fashion_mnist", "cifar10")
        for partition in ("dirichlet", "pat1", "pat2")
    ),
    Published("beta", ((*FOUR_DOMAINS, "strategy=fedpw", "strategy.beta=0.1,0.2,0.3,0.5,0.7"),)),
    Published(
        "drop-rate",
        ((*FOUR_DOMAINS, "strategy=fedpw", "strategy.avg_drop_rate=0.1,0.2,0.3,0.4,0.5"),),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [one.name for one in PUBLISHED]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--data", type=Path, help="folder of the archives")
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "multirun" / "published")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(names)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; choose among {', '.join(names)}")
    if arguments.data is None:
        parser.error("say with --data where the archives are")
    failed = False
    for one in PUBLISHED:
        if arguments.names and one.name not in arguments.names:
            continue
        for sweep in one.sweeps:
            failed |= not _run(one, sweep, arguments.data.resolve(), arguments.runs.resolve())
    sys.exit(1 if failed else 0)


def _run(one: Published, sweep: tuple[str, ...], data: Path, runs: Path) -> bool:
    overrides = [word.replace("DATA", str(data)) for word in sweep]
    # One folder for all: a run that two comparisons share is run once.
    command = ["fedpw", "-m", *overrides, f"hydra.sweep.dir={runs}"]
    print(f"{one.name}: {' '.join(command)}", flush=True)
    return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    main()
