"""What clipping and local differential privacy on the clients cost FedPW, and FedAvg beside it.

    python benchmarks/privacy_cost.py

A real federation in this process: eight clients of the four embedded domains train a small CNN
through ClientApps with Flower's `fixedclipping_mod` or `LocalDpMod` in front of FedPW's, as in
``mods=[fixedclipping_mod, fedpw_mod]``. Only the network is missing. The global model is tested on
every domain; figures are means of the last three rounds.

Clipping norms are multiples of the median norm that updates have without clipping, measured first.
Noise is sized for the sensitivity 2C: another client's clipped update may lie opposite. Behind
FedPW(adjustment="server") the weights and masks are computed from what was noised already, so that
all but the training loss is covered; `LocalDpMod` takes ε of a single round, by a formula that
holds below 1 only. What all rounds together give away is computed exactly: a Gaussian mechanism
of sensitivity/σ = μ, composed T times, is one of μ√T, and Balle and Wang's δ(ε) is solved for ε.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.serverapp.strategy import FedAvg
from report import Table
from server_step import nodes, prepare

from fedpw_flwr import FedPW, FedPWMod
from fedpw_flwr.lab.data.embedded_digits import embedded_digits
from fedpw_flwr.lab.data.examples import DomainCollection
from fedpw_flwr.lab.data.partition import ByDomain, ClientShare
from fedpw_flwr.lab.models.cnn import SmallCNN
from fedpw_flwr.lab.training.evaluation import evaluate
from fedpw_flwr.lab.training.loop import client_generator, train
from fedpw_flwr.lab.training.settings import ClientSettings

SEEDS = (0, 1, 2)
ROUNDS = 25
LAST = 3

IMAGE_SIZE = 16
WIDTH = 16
PICTURES = {"scans": 190, "textured": 150, "blurred": 150, "fonts": 100}
TRAINING = ClientSettings(epochs=2, batch_size=16, learning_rate=0.03, crop_padding=1)

DELTA = 1e-5
CLIPPING = (2.0, 1.0, 0.5, 0.25)
DP_CLIPPING = 0.5
"""Clipping norms, in units of the median norm of an update."""
EPSILONS = (1000.0, 300.0, 100.0)
"""Of one round, as `LocalDpMod` takes it."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    seeds: Sequence[int] = SEEDS
    rounds: int = ROUNDS
    clipping: Sequence[float] = CLIPPING
    epsilons: Sequence[float] = EPSILONS


TINY = Size((0,), 3, (0.5,), (100.0,))


@dataclass(frozen=True)
class Setting:
    """What protects the clients' updates.

    Attributes
    ----------
    method : str
        "FedAvg" or "FedPW".
    norm : float | None
        Clipping norm C.
    epsilon : float | None
        ε of one round; None: no noise.
    """

    method: str = "FedPW"
    norm: float | None = None
    epsilon: float | None = None

    def strategy(self) -> FedAvg:
        if self.method == "FedAvg":
            return FedAvg(fraction_evaluate=0.0)
        return FedPW(
            fraction_evaluate=0.0,
            device="cpu",
            adjustment="client" if self.epsilon is None else "server",
        )

    def mods(self, norms: Norms) -> list[Mod]:
        """Return the client's mods, the outermost first."""
        inner: list[Mod] = [norms, FedPWMod(device="cpu")]
        if self.norm is None:
            return inner
        if self.epsilon is None:
            return [fixedclipping_mod, *inner]
        return [LocalDpMod(self.norm, 2 * self.norm, self.epsilon, DELTA), *inner]


@dataclass
class Norms:
    """A mod that remembers the norms of the updates that pass, as they reach clipping."""

    seen: list[float] = field(default_factory=list)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        start = message.content.array_records["arrays"].to_numpy_ndarrays()
        reply = call_next(message, context)
        end = reply.content.array_records["arrays"].to_numpy_ndarrays()
        squares = (
            np.square(a - b, dtype=np.float64).sum() for a, b in zip(start, end, strict=True)
        )
        self.seen.append(math.sqrt(sum(squares)))
        return reply


@dataclass(frozen=True)
class Outcome:
    """Accuracies in %, means of the last rounds, and what became of the updates."""

    average: float
    std: float
    worst: float
    norms: Sequence[float]

    def __str__(self) -> str:
        return f"{self.average:.1f} / {self.std:.1f} / {self.worst:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    arguments = parser.parse_args()
    print("\n\n".join(table.markdown() for table in tables(tiny=arguments.tiny)))


def tables(tiny: bool = False) -> list[Table]:
    """Measure with the sizes of the documents; tiny: one seed, three rounds."""
    prepare()
    torch.set_num_threads(1)
    size = TINY if tiny else Size()
    free = outcomes(Setting(), size)
    typical = statistics.median(norm for outcome in free for norm in outcome.norms)
    return [clipping_table(size, typical, free), noise_table(size, typical, free)]


def clipping_table(size: Size, typical: float, free: Sequence[Outcome]) -> Table:
    """Measure clipping on the clients."""
    rows = [_row("none", free, _clipped(free, math.inf))]
    for share in size.clipping:
        norm = share * typical
        clipped = outcomes(Setting("FedPW", norm), size)
        rows.append(_row(f"{share:g} × median = {norm:.2f}", clipped, _clipped(clipped, norm)))
    return Table(
        title="Clipping on the clients, with FedPW",
        header=("clipping norm", "updates clipped, %", *_figures(size)),
        rows=tuple(rows),
        note=(
            f'mods=[fixedclipping_mod, fedpw_mod], FedPW(adjustment="client"). {_federation(size)} '
            f"{_FIGURES} The median norm of an update is {typical:.2f} without clipping."
        ),
    )


def noise_table(size: Size, typical: float, free: Sequence[Outcome]) -> Table:
    """Measure local differential privacy, with FedPW and with FedAvg."""
    norm = DP_CLIPPING * typical
    plain = outcomes(Setting("FedAvg"), size)
    rows = [("none", "", "", *_row("FedPW", free)), ("none", "", "", *_row("FedAvg", plain))]
    for epsilon in size.epsilons:
        ratio = epsilon / math.sqrt(2 * math.log(1.25 / DELTA))
        sigma = 2 * norm / ratio
        for method in ("FedPW", "FedAvg"):
            noised = outcomes(Setting(method, norm, epsilon), size)
            spent = composed_epsilon(ratio, size.rounds, DELTA)
            cells = (f"{epsilon:g}", f"{spent:,.0f}", f"{sigma:.4f}")
            rows.append((*cells, *_row(method, noised)))
    return Table(
        title="Local differential privacy of whole updates, with FedPW and FedAvg",
        header=("ε given", "ε of the run", "σ of an entry", "method", *_figures(size)),
        rows=tuple(rows),
        note=(
            f"mods=[LocalDpMod({norm:.2f}, {2 * norm:.2f}, ε, {DELTA:g})], "
            f'FedPW(adjustment="server"). {_federation(size)} {_FIGURES} ε given is what '
            "LocalDpMod takes for one round; ε of the run is what all rounds together give away at "
            f"δ = {DELTA:g}. The reported loss is in neither. Without noise nothing is clipped, "
            "and the clients adjust."
        ),
    )


def outcomes(setting: Setting, size: Size) -> list[Outcome]:
    """Run a federation for each seed."""
    return [federation(setting, seed, size.rounds) for seed in size.seeds]


def federation(setting: Setting, seed: int, rounds: int) -> Outcome:
    """Train one federation from its seed, and test it in the last rounds."""
    torch.manual_seed(seed)
    # LocalDpMod draws from here. A real client must never be seeded: its noise could be undone.
    np.random.seed(seed)
    data, shares = clients(seed)
    tested = SmallCNN(data.num_classes, data.in_channels, WIDTH)
    norms = Norms()
    accuracies: list[list[float]] = []

    def test(server_round: int, arrays: ArrayRecord) -> None:
        if server_round > rounds - LAST:
            tested.load_state_dict(arrays.to_torch_state_dict())
            accuracies.append(
                [
                    evaluate(tested, one.test, mean=data.mean, std=data.std, device="cpu").accuracy
                    for one in data.domains
                ]
            )

    train_config = ConfigRecord()
    if setting.norm is not None and setting.epsilon is None:
        train_config["clipping_norm"] = setting.norm
    setting.strategy().start(
        nodes(len(shares), client_app(setting.mods(norms), seed, data, shares)),
        ArrayRecord(tested.state_dict()),
        num_rounds=rounds,
        train_config=train_config,
        evaluate_fn=test,
    )
    in_percent = [[100 * accuracy for accuracy in one_round] for one_round in accuracies[-LAST:]]
    return Outcome(
        average=statistics.fmean(map(statistics.fmean, in_percent)),
        std=statistics.fmean(map(statistics.stdev, in_percent)),
        worst=statistics.fmean(map(min, in_percent)),
        norms=norms.seen,
    )


def client_app(
    mods: list[Mod], seed: int, data: DomainCollection, shares: Sequence[ClientShare]
) -> ClientApp:
    """Build the ClientApp of all nodes; node k is client k - 1."""
    app = ClientApp(mods=mods)
    model = SmallCNN(data.num_classes, data.in_channels, WIDTH)

    @app.train()
    def train_client(message: Message, context: Context) -> Message:
        share = shares[context.node_id - 1]
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        server_round = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        loss = train(
            model,
            share.train,
            TRAINING,
            mean=data.mean,
            std=data.std,
            device="cpu",
            generator=client_generator(seed, server_round, share.client_id),
        )
        metrics = MetricRecord({"train_loss": loss, "num-examples": len(share.train)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


@cache
def clients(seed: int) -> tuple[DomainCollection, list[ClientShare]]:
    """Return the domains, and two clients' images of each."""
    data = embedded_digits(image_size=IMAGE_SIZE)
    return data, ByDomain(clients_per_domain=2, train_per_client=PICTURES).split(data, seed)


def composed_epsilon(ratio: float, rounds: int, delta: float) -> float:
    """Return the least ε at which rounds of Gaussian noise are (ε, δ)-differentially private.

    Parameters
    ----------
    ratio : float
        μ, the sensitivity of a round in units of the noise's standard deviation.
    rounds : int
        T.
    delta : float
        δ.
    """
    mu = ratio * math.sqrt(rounds)

    def spent(epsilon: float) -> float:
        first, second = torch.special.log_ndtr(
            torch.tensor([mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu], dtype=torch.float64)
        ).tolist()
        return math.exp(first) - math.exp(epsilon + second)

    low, high = 0.0, mu * mu / 2 + 40 * mu
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


def _figures(size: Size) -> tuple[str, ...]:
    return (*(f"seed {seed}" for seed in size.seeds), "AVG", "STD", "worst")


_FIGURES = (
    "AVG / STD / worst are the mean, STD (ddof = 1) and minimum of the domains' accuracies, %."
)


def _federation(size: Size) -> str:
    entries = sum(tensor.numel() for tensor in SmallCNN(10, 3, WIDTH).parameters())
    return f"8 clients in {size.rounds} rounds each, a CNN of {entries:,} parameters."


def _row(name: str, measured: Sequence[Outcome], *more: str) -> tuple[str, ...]:
    means = (
        statistics.fmean(getattr(outcome, figure) for outcome in measured)
        for figure in ("average", "std", "worst")
    )
    return (name, *more, *map(str, measured), *(f"{mean:.1f}" for mean in means))


def _clipped(measured: Sequence[Outcome], norm: float) -> str:
    return f"{100 * statistics.fmean(seen > norm for one in measured for seen in one.norms):.0f}"


if __name__ == "__main__":
    main()
