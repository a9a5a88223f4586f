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

import numpy as np
import torch
from digits_federation import IMAGE_SIZE, WIDTH, play
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.serverapp.strategy import FedAvg
from report import Table
from server_step import prepare

from fedpw_flwr import FedPW, FedPWMod
from fedpw_flwr.lab.data.embedded_digits import embedded_digits
from fedpw_flwr.lab.data.partition import ByDomain
from fedpw_flwr.lab.models.cnn import SmallCNN

PICTURES = {"scans": 190, "textured": 150, "blurred": 150, "fonts": 100}

DELTA = 1e-5
DP_CLIPPING = 0.5
"""Clipping norm where there is noise, in units of the median norm of an update."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    seeds: Sequence[int] = (0, 1, 2)
    rounds: int = 25
    clipping: Sequence[float] = (2.0, 1.0, 0.5, 0.25)
    """Clipping norms, in units of the median norm of an update."""
    epsilons: Sequence[float] = (1000.0, 300.0, 100.0)
    """Of one round, as `LocalDpMod` takes it."""


TINY = Size((0,), 3, (0.5,), (100.0,))


@dataclass(frozen=True)
class Setting:
    """What protects the clients' updates."""

    method: str = "FedPW"
    norm: float | None = None
    """Clipping norm C."""
    epsilon: float | None = None
    """ε of one round; None: no noise."""

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
    size = TINY if arguments.tiny else Size()
    print("\n\n".join(table.markdown() for table in tables(size)))


def tables(size: Size) -> list[Table]:
    """Measure everything beside the same federations without protection."""
    prepare()
    torch.set_num_threads(1)
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
    # LocalDpMod draws from here. A real client must never be seeded: its noise could be undone.
    torch.manual_seed(seed)
    np.random.seed(seed)
    data = embedded_digits(image_size=IMAGE_SIZE)
    shares = ByDomain(clients_per_domain=2, train_per_client=PICTURES).split(data, seed)
    config, norms = ConfigRecord(), Norms()
    if setting.norm is not None and setting.epsilon is None:
        config["clipping_norm"] = setting.norm
    sets = [share.train for share in shares]
    _, accuracies = play(
        *(setting.strategy(), data, sets, seed, rounds, setting.mods(norms)), config=config
    )
    in_percent = [[100 * accuracy for accuracy in one_round] for one_round in accuracies]
    return Outcome(
        average=statistics.fmean(map(statistics.fmean, in_percent)),
        std=statistics.fmean(map(statistics.stdev, in_percent)),
        worst=statistics.fmean(map(min, in_percent)),
        norms=norms.seen,
    )


def composed_epsilon(ratio: float, rounds: int, delta: float) -> float:
    """Return the least ε at which T rounds of Gaussian noise are (ε, δ)-differentially private.

    `ratio` is μ, the sensitivity of a round in units of the noise's standard deviation.
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
