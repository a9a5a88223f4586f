"""The experiments of RESULTS.md: settings, seeds, grids, and what was chosen of these.

results/protocol.md says why. ``published.py`` runs them, ``results_page.py`` makes the pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

STAGES = ("rates", "tuning", "table")

TUNED_ON = (20, 21, 22)
"""Seeds that no table uses."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """A section of RESULTS.md: a setting, how its methods were tuned, and what was run on it."""

    name: str
    title: str
    setting: tuple[str, ...]
    """What all its runs have in common; DATA stands for the folder of the archives."""
    seeds: range
    """Of the table."""
    rates: str
    """Learning rates that FedAvg was tried with, for `longest` rounds."""
    longest: int
    learning_rate: float
    rounds: int
    """Chosen by `rates`: see `chosen_rate`."""
    methods: str
    """Those that have no setting to tune, FedPW with its defaults among them."""
    grids: Mapping[str, str] = field(default_factory=dict)
    """Of each baseline the values that were tried."""
    chosen: Mapping[str, str] = field(default_factory=dict)
    """Of each baseline the value with the largest sum of both primary figures."""
    others: tuple[tuple[str, ...], ...] = ()
    """Methods that take more than one word."""
    tuned_on: tuple[int, ...] = TUNED_ON
    fewest: int = 20
    """Rounds at least."""
    of_clients: bool = False
    """Whether the primary figures are over clients, and not over domains."""

    @property
    def primary(self) -> tuple[str, str]:
        """The two figures that methods are judged by."""
        if self.of_clients:
            return "clients.mean", "clients.worst_10"
        return "domains.mean", "domains.worst"

    def sweeps(self, stage: str) -> Iterator[tuple[str, ...]]:
        """Yield what `fedpw -m` is called with, call by call."""
        fixed = (*self.setting, f"client.learning_rate={self.learning_rate}")
        fixed = (*fixed, f"rounds={self.rounds}")
        tuning = (*fixed, f"seed={','.join(map(str, self.tuned_on))}")
        table = (*fixed, f"seed=range({self.seeds.start},{self.seeds.stop})")
        if stage == "rates":
            seeds = f"seed={','.join(map(str, TUNED_ON))}"
            rates = f"client.learning_rate={self.rates}"
            yield (*self.setting, seeds, f"rounds={self.longest}", "strategy=fedavg", rates)
        elif stage == "tuning":
            for method, grid in self.grids.items():
                yield (*tuning, f"strategy={method}", f"strategy.{grid}")
        else:
            yield (*table, f"strategy={self.methods}")
            for method, value in self.chosen.items():
                yield (*table, f"strategy={method}", f"strategy.{value}")
            for words in self.others:
                yield (*table, *words)


GRIDS = {
    "afl": "lambda_step=0.001,0.003,0.01,0.03,0.1,0.3",
    "term": "t=0.1,0.3,1,3,10",
    "qfedavg": "q=0.1,0.3,1,3,10",
    "fedheal": "tau=0.1,0.3,0.5,0.7,0.9",
    "fedavgm": "server_momentum=0.1,0.3,0.5,0.7,0.9",
}
METHODS = "fedavg,fedavg_equal,fedpw,fedpw_server,fedpw_pa,fedpw_awa"
BY_VISITS = (
    *("strategy=fedpw", "strategy.name=fedpw_by_visits"),
    *("strategy._target_=variants.FedPWVariant", "+strategy.variant=visits"),
)


def _label_skew(partition: str, title: str, rates: str, learning_rate: float) -> Experiment:
    return Experiment(
        f"label-skew-{partition}",
        f"100 clients, 10 a round: Fashion-MNIST, {title}",
        (
            *("experiment=fashion_mnist", "dataset.archives_folder=DATA", "model=cnn"),
            *(f"partition={partition}", "partition.clients_per_domain=100"),
            *("client.epochs=1", "strategy.fraction_train=0.1"),
        ),
        seeds=range(30, 35),
        rates=rates,
        longest=100,
        learning_rate=learning_rate,
        rounds=100,
        methods="fedavg,fedavg_equal,fedpw",
        others=(BY_VISITS,),
        fewest=100,
        of_clients=True,
    )


PUBLISHED = (
    Experiment(
        "hospitals",
        "Four hospitals: UCI Heart Disease",
        ("experiment=heart_disease", "dataset.folder=DATA/heart"),
        seeds=range(100, 130),
        rates="0.001,0.003,0.01,0.03",
        longest=100,
        learning_rate=0.003,
        rounds=50,
        methods=METHODS,
        grids=GRIDS,
        chosen={
            "afl": "lambda_step=0.001",
            "term": "t=3",
            "qfedavg": "q=0.1",
            "fedheal": "tau=0.7",
            "fedavgm": "server_momentum=0.1",
        },
    ),
    Experiment(
        "default",
        "The default experiment: four domains of digits that come with the package",
        (),
        seeds=range(30, 40),
        rates="0.02,0.05,0.1,0.2",
        longest=100,
        learning_rate=0.1,
        rounds=100,
        methods=METHODS,
        grids=GRIDS,
    ),
    Experiment(
        "four-sources",
        "Four real sources of digits",
        ("experiment=four_domains", "dataset.folder=DATA", "model.width=16"),
        seeds=range(30, 35),
        rates="0.005,0.01,0.02",
        longest=80,
        learning_rate=0.01,
        rounds=60,
        methods="fedavg,fedavg_equal,fedpw",
        grids={key: GRIDS[key] for key in ("afl", "fedheal")},
        tuned_on=(20,),
        fewest=60,
    ),
    _label_skew("dirichlet", "Dir(0.1)", "0.01,0.02,0.05,0.1", 0.02),
    _label_skew("pat2", "two classes a client", "0.01,0.02,0.05,0.1,0.2,0.5", 0.2),
    Experiment(
        "paper-digits",
        "The paper's Digits: 20 clients, at width 16",
        (
            *("experiment=paper_digits", "dataset.archives_folder=DATA", "model.width=16"),
            "partition.train_per_client={mnist:600,usps:73,svhn:147,syn:100}",
            "partition.share=null",
        ),
        seeds=range(30, 33),
        rates="0.001,0.003,0.01",
        longest=40,
        learning_rate=0.003,
        rounds=40,
        methods="fedavg,fedavg_equal,fedpw",
    ),
)
