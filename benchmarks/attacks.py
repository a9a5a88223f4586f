"""What one lying client does to a federation, with FedPW's bounds and without.

    python benchmarks/attacks.py

Twelve clients, three of each of the embedded domains of digits, train a small network for real, in
this process: the real FedPW (it asks the clients to adjust their updates), a real ClientApp with
`FedPWMod`. The attacker is the first client of the first domain:

``loss 1e6, wrong labels``
    learns every digit as the next one, and reports a loss of a million to be heard.
``wrong labels``
    the same with its true loss: what is not owed to the lie.
``loss 1e-9``
    learns as it should, and reports next to no loss, so that others' updates are masked less.

The bounds are those of a weight and of a loss, `max_weight` and `max_loss_ratio`: FedPW's defaults,
tighter ones, and none.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from digits_federation import IMAGE_SIZE, LAST, WIDTH, play
from flwr.app import MetricRecord
from report import Table
from server_step import prepare

from fedpw_flwr import FedPW, FedPWMod
from fedpw_flwr.fairness import standard_deviation
from fedpw_flwr.lab.data.embedded_digits import embedded_digits
from fedpw_flwr.lab.data.examples import DomainCollection, ImageSet
from fedpw_flwr.lab.data.partition import ByDomain

ATTACKER = 0
BOUNDS: dict[str, dict[str, Any]] = {
    "3 and 10": {},
    "2 and 3": {"max_weight": 2.0, "max_loss_ratio": 3.0},
    "off": {"max_weight": None, "max_loss_ratio": None},
}
"""By what the table says; the first are the defaults."""


@dataclass(frozen=True)
class Attack:
    """What the attacker does beside training."""

    name: str
    loss: float | None = None
    """What it reports; None for the truth."""
    wrong_labels: bool = False
    """Whether it learns every digit as the next one."""


NONE = Attack("none")
ATTACKS = (
    NONE,
    Attack("wrong labels", wrong_labels=True),
    Attack("loss 1e6, wrong labels", loss=1e6, wrong_labels=True),
    Attack("loss 1e-9", loss=1e-9),
)


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    clients_per_domain: int = 3
    images: int = 130
    width: int = WIDTH
    rounds: int = 25
    seeds: tuple[int, ...] = (0, 1, 2)


TINY = Size(clients_per_domain=1, images=16, width=2, rounds=2, seeds=(0,))


@dataclass(frozen=True)
class Outcome:
    """What became of a run; accuracies are means of the last rounds."""

    accuracies: tuple[float, ...]
    """Of the global model, by domain, 0 to 1."""

    weight: float
    """The first client's in the last round, in equal shares 1/N."""

    drop_rate: float
    """Mean over the other clients in the last round."""

    bounded: int
    """Replies of the whole run whose loss or weight was brought within its bound."""

    digest: str
    """SHA-256 of the last model."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--rounds", type=int, default=Size.rounds)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(Size.seeds))
    arguments = parser.parse_args()
    size = TINY if arguments.tiny else Size(rounds=arguments.rounds, seeds=tuple(arguments.seeds))
    print("\n\n".join(table.markdown() for table in tables(size)))


def tables(size: Size) -> list[Table]:
    """Run every attack with the bounds and without, one run after the other."""
    prepare()
    torch.set_num_threads(1)
    data = embedded_digits(image_size=IMAGE_SIZE)
    runs = {
        (attack.name, bounds): [run(size, data, seed, attack, options) for seed in size.seeds]
        for attack in ATTACKS
        for bounds, options in BOUNDS.items()
    }
    return [harm_table(size, runs), cost_table(size, runs)]


def run(
    size: Size, data: DomainCollection, seed: int, attack: Attack, options: dict[str, Any]
) -> Outcome:
    """Train one federation."""
    division = ByDomain(clients_per_domain=size.clients_per_domain, train_per_client=size.images)
    sets = [share.train for share in division.split(data, seed)]
    if attack.wrong_labels:
        own = sets[ATTACKER]
        sets[ATTACKER] = ImageSet(own.images, (own.labels + 1) % data.num_classes)
    strategy = FedPW(
        fraction_evaluate=0.0,
        min_available_nodes=len(sets),
        adjustment="client",
        device="cpu",
        **options,
    )
    told = {} if attack.loss is None else {ATTACKER: attack.loss}
    result, by_domain = play(
        *(strategy, data, sets, seed, size.rounds, [FedPWMod("cpu")]), width=size.width, told=told
    )
    metrics = list(result.train_metrics_clientapp.values())
    return Outcome(
        accuracies=tuple(map(statistics.fmean, zip(*by_domain, strict=True))),
        weight=len(sets) * listed(metrics[-1], "fedpw-weight")[ATTACKER],
        drop_rate=statistics.fmean(listed(metrics[-1], "fedpw-drop-rate")[ATTACKER + 1 :]),
        bounded=sum(int(each["fedpw-bounded"]) for each in metrics),  # type: ignore[arg-type]
        digest=hashlib.sha256(b"".join(one.data for one in result.arrays.values())).hexdigest(),
    )


def listed(metrics: MetricRecord, key: str) -> list[float]:
    value = metrics[key]
    assert isinstance(value, list)
    return [float(entry) for entry in value]


Runs = dict[tuple[str, str], list[Outcome]]


def harm_table(size: Size, runs: Runs) -> Table:
    """Weight, accuracy and spread, means over the seeds."""
    rows = []
    for (attack, bounds), outcomes in runs.items():
        means = [100 * outcome.mean for outcome in outcomes]
        rows.append(
            (
                attack,
                bounds,
                f"{statistics.fmean(outcome.weight for outcome in outcomes):.2f}",
                f"{statistics.fmean(outcome.drop_rate for outcome in outcomes):.3f}",
                f"{statistics.fmean(means):.1f}",
                f"{standard_deviation(means):.1f}",
                f"{statistics.fmean(spread(outcome) for outcome in outcomes):.1f}",
                f"{statistics.fmean(100 * min(outcome.accuracies) for outcome in outcomes):.1f}",
            )
        )
    return Table(
        title=f"One lying client of {4 * size.clients_per_domain}",
        header=(
            *("attack", "bounds: weight, loss", "its weight, 1/N", "drop rate of the others"),
            *("mean accuracy, %", "± over seeds", "STD over domains", "worst domain, %"),
        ),
        rows=tuple(rows),
        note=(
            f"After {size.rounds} rounds, means over the seeds {', '.join(map(str, size.seeds))}. "
            f"Accuracies, on the domains' own test images, are those of the last {LAST} rounds; "
            "weight and drop rate those of the last. Without an attack the weight is that of the "
            "client that attacks in the other rows."
        ),
    )


def spread(outcome: Outcome) -> float:
    return standard_deviation([100 * value for value in outcome.accuracies])


def cost_table(size: Size, runs: Runs) -> Table:
    """What the bounds change where nobody lies."""
    rows = []
    for bounds in BOUNDS:
        if bounds == "off":
            continue
        pairs = zip(size.seeds, runs[NONE.name, bounds], runs[NONE.name, "off"], strict=True)
        for seed, on, off in pairs:
            rows.append(
                (
                    bounds,
                    f"{seed}",
                    f"{on.bounded}",
                    "the same" if on.digest == off.digest else "another",
                    f"{100 * (on.mean - off.mean):+.2f}",
                    f"{spread(on) - spread(off):+.2f}",
                    f"{100 * (min(on.accuracies) - min(off.accuracies)):+.2f}",
                )
            )
    return Table(
        title="What the bounds cost honest runs",
        header=(
            *("bounds", "seed", "replies bounded", "bits of the last model"),
            *("mean accuracy", "STD over domains", "worst domain"),
        ),
        rows=tuple(rows),
        note="Differences to the run without bounds, in points of a per cent.",
    )


if __name__ == "__main__":
    main()
