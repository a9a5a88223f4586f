"""An experiment, built: from the configuration to pictures, clients' shares, model and strategy.

One process builds it once. The command builds it to find mistakes before anything is started, the
ServerApp to evaluate, every ClientApp worker to train.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fedpw_flwr.data.images import DomainCollection
from fedpw_flwr.data.partition import ClientShare
from fedpw_flwr.experiment.configuration import (
    ConfigurationError,
    RuntimeSettings,
    compose_configuration,
    runtime_settings,
)
from fedpw_flwr.training.settings import ClientSettings

__all__ = ["Experiment", "build_experiment", "experiment_of"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Experiment:
    """Everything a process needs to take part in a run.

    Attributes
    ----------
    configuration : DictConfig
        What it was built from.
    seed, rounds : int
        The run's seed and number of rounds.
    data : DomainCollection
        The domains with their training and test pictures.
    shares : tuple[ClientShare, ...]
        What each client trains on; client k is at place k.
    client : ClientSettings
        How a client trains.
    runtime : RuntimeSettings
        Where clients run.
    device : torch.device
        Device of training and evaluation in this process.
    """

    configuration: DictConfig
    seed: int
    rounds: int
    data: DomainCollection
    shares: tuple[ClientShare, ...]
    client: ClientSettings
    runtime: RuntimeSettings
    device: torch.device

    def new_model(self) -> nn.Module:
        """Build the model with the run's initial weights, the same in every process."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model: nn.Module = _built(
                "model",
                lambda: instantiate(
                    self.configuration.model,
                    num_classes=self.data.num_classes,
                    in_channels=self.data.in_channels,
                ),
            )
        return model

    def new_strategy(
        self, train_metrics_aggr_fn: Callable[[list[RecordDict], str], MetricRecord]
    ) -> Strategy:
        """Build the strategy for this number of clients.

        Parameters
        ----------
        train_metrics_aggr_fn : Callable[[list[RecordDict], str], MetricRecord]
            Aggregates the training metrics of a round.
        """
        settings = OmegaConf.masked_copy(
            self.configuration.strategy,
            [key for key in self.configuration.strategy if key != "name"],
        )
        sampling = {"min_train_nodes": 1, "min_evaluate_nodes": 1}
        defaults = {key: value for key, value in sampling.items() if key not in settings}
        strategy: Strategy = _built(
            "strategy",
            lambda: instantiate(
                settings,
                min_available_nodes=len(self.shares),
                train_metrics_aggr_fn=train_metrics_aggr_fn,
                **defaults,
            ),
        )
        return strategy


@lru_cache(maxsize=1)
def experiment_of(config_name: str, overrides: str) -> Experiment:
    """Build the experiment of a run configuration; once a process."""
    return build_experiment(compose_configuration(config_name, overrides))


def build_experiment(configuration: DictConfig) -> Experiment:
    """Load the data, divide them among the clients, and check that model and strategy can be built.

    Raises
    ------
    ConfigurationError
        If a part cannot be built; the message names it and keeps the part's own words.
    """
    seed = int(configuration.seed)
    data: DomainCollection = _built("dataset", lambda: instantiate(configuration.dataset))
    partition: Any = _built("partition", lambda: instantiate(configuration.partition))
    shares = _built("partition", lambda: tuple(partition.split(data, seed)))
    experiment = Experiment(
        configuration=configuration,
        seed=seed,
        rounds=int(configuration.rounds),
        data=data,
        shares=shares,
        client=_built("client", lambda: instantiate(configuration.client)),
        runtime=runtime_settings(configuration),
        device=_device(runtime_settings(configuration).device),
    )
    experiment.new_model()
    experiment.new_strategy(lambda contents, key: MetricRecord())
    return experiment


def _built(part: str, build: Callable[[], T]) -> T:
    """Build a part; turn hydra's nested errors into one that names it."""
    try:
        return build()
    except (HydraException, ValueError, TypeError, OSError) as error:
        cause: BaseException = error
        while isinstance(cause, HydraException) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise ConfigurationError(f"{part}: {cause}") from error


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(
            f"runtime.device={name} is not a device of PyTorch; use auto, cpu or cuda"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            f"runtime.device={name}, but PyTorch sees no CUDA device; use auto or cpu"
        )
    return device
