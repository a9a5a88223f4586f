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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result
from report import Table
from server_step import nodes, prepare

from fedpw_flwr import FedPW, FedPWMod
from fedpw_flwr.fairness import standard_deviation
from fedpw_flwr.lab.data.embedded_digits import embedded_digits
from fedpw_flwr.lab.data.examples import DomainCollection, ImageSet
from fedpw_flwr.lab.data.partition import ByDomain
from fedpw_flwr.lab.models.cnn import SmallCNN
from fedpw_flwr.lab.training.evaluation import evaluate
from fedpw_flwr.lab.training.loop import client_generator, train
from fedpw_flwr.lab.training.settings import ClientSettings

ATTACKER = 0
TRAINING = ClientSettings(epochs=2, batch_size=16, learning_rate=0.03, crop_padding=1)
BOUNDS: dict[str, dict[str, Any]] = {
    "3 and 10": {},
    "2 and 3": {"max_weight": 2.0, "max_loss_ratio": 3.0},
    "off": {"max_weight": None, "max_loss_ratio": None},
}
"""By what the table says; the first are the defaults."""

LAST = 3
"""Rounds at the end whose accuracies are averaged."""


@dataclass(frozen=True)
class Attack:
    """What the attacker does beside training.

    Attributes
    ----------
    name : str
        As in the table.
    loss : float | None
        What it reports; None for the truth.
    wrong_labels : bool
        Whether it learns every digit as the next one.
    """

    name: str
    loss: float | None = None
    wrong_labels: bool = False


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
    width: int = 16
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
    print("\n\n".join(table.markdown() for table in tables_of(size)))


def tables(tiny: bool = False) -> list[Table]:
    """Measure all attacks over the usual seeds; tiny: four clients, two rounds, once."""
    return tables_of(TINY if tiny else Size())


def tables_of(size: Size) -> list[Table]:
    """Run every attack with the bounds and without, one run after the other."""
    prepare()
    torch.set_num_threads(1)
    data = embedded_digits(image_size=16)
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
    shares = ByDomain(
        clients_per_domain=size.clients_per_domain, train_per_client=size.images
    ).split(data, seed)
    sets = [share.train for share in shares]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SmallCNN(data.num_classes, data.in_channels, size.width)
    initial = ArrayRecord(model.state_dict())
    by_domain: list[tuple[float, ...]] = []

    def test(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round <= size.rounds - LAST:
            return None
        model.load_state_dict(arrays.to_torch_state_dict())
        by_domain.append(tuple(accuracy(model, domain.test, data) for domain in data.domains))
        return MetricRecord({"accuracy": statistics.fmean(by_domain[-1])})

    strategy = FedPW(
        fraction_evaluate=0.0,
        min_available_nodes=len(sets),
        adjustment="client",
        device="cpu",
        **options,
    )
    app = client_app(model, sets, data, seed, attack)
    result = strategy.start(
        nodes(len(sets), app), initial, num_rounds=size.rounds, evaluate_fn=test
    )
    last = [statistics.fmean(values) for values in zip(*by_domain, strict=True)]
    metrics = list(result.train_metrics_clientapp.values())
    return Outcome(
        accuracies=tuple(last),
        weight=len(sets) * listed(metrics[-1], "fedpw-weight")[ATTACKER],
        drop_rate=statistics.fmean(listed(metrics[-1], "fedpw-drop-rate")[ATTACKER + 1 :]),
        bounded=sum(counted(each, "fedpw-bounded") for each in metrics),
        digest=digest_of(result),
    )


def client_app(
    model: SmallCNN, sets: Sequence[ImageSet], data: DomainCollection, seed: int, attack: Attack
) -> ClientApp:
    """Make the app of all nodes; node n is client n − 1."""
    app = ClientApp(mods=[FedPWMod("cpu")])

    @app.train()
    def train_client(message: Message, context: Context) -> Message:
        client = context.node_id - 1
        server_round = counted(message.content.config_records["config"], "server-round")
        images = sets[client]
        attacks = client == ATTACKER
        if attacks and attack.wrong_labels:
            images = ImageSet(images.images, (images.labels + 1) % data.num_classes)
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        loss = train(
            model,
            images,
            TRAINING,
            mean=data.mean,
            std=data.std,
            device="cpu",
            generator=client_generator(seed, server_round, client),
        )
        if attacks and attack.loss is not None:
            loss = attack.loss
        content = RecordDict(
            {
                "arrays": ArrayRecord(model.state_dict()),
                "metrics": MetricRecord({"train_loss": loss, "num-examples": len(images)}),
                "identity": ConfigRecord({"client-id": client}),
            }
        )
        return Message(content, reply_to=message)

    return app


def accuracy(model: SmallCNN, images: ImageSet, data: DomainCollection) -> float:
    return evaluate(model, images, mean=data.mean, std=data.std, device="cpu").accuracy


def digest_of(result: Result) -> str:
    digest = hashlib.sha256()
    for array in result.arrays.values():
        digest.update(array.data)
    return digest.hexdigest()


def listed(metrics: MetricRecord, key: str) -> list[float]:
    value = metrics[key]
    assert isinstance(value, list)
    return [float(entry) for entry in value]


def counted(record: MetricRecord | ConfigRecord, key: str) -> int:
    value = record[key]
    assert isinstance(value, int)
    return value


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
