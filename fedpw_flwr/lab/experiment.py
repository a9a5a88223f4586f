"""An experiment, built: from the configuration to images, clients' shares, model and strategy.

Each process builds it once: the ServerApp to evaluate, every ClientApp worker to train. The command
builds it first, to find mistakes, and saves what it composed and read in a file of the launch,
which spares the others these seconds. Where nobody left such a file (`flwr run`, a SuperNode of its
own), each process builds from the configuration.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from torch import nn

from fedpw_flwr import __version__
from fedpw_flwr.device import available_device
from fedpw_flwr.lab.config.configuration import (
    PREPARED_VARIABLE,
    ConfigurationError,
    RuntimeSettings,
    compose_configuration,
    group_settings,
    named_part,
    resolved_yaml,
    runtime_settings,
)
from fedpw_flwr.lab.data.digest import pictures_digest
from fedpw_flwr.lab.data.images import DomainCollection
from fedpw_flwr.lab.data.partition import ClientShare
from fedpw_flwr.lab.data.prepared import load_prepared, save_prepared
from fedpw_flwr.lab.training.settings import ClientSettings

__all__ = [
    "Experiment",
    "build_experiment",
    "build_group",
    "experiment_of",
    "prepare_experiment",
]

_CONFIGURATION = "configuration"
_DIGEST = "data-digest"


@dataclass(frozen=True, eq=False)
class Experiment:
    """Everything a process needs to take part in a run.

    ``shares[k]`` is what client k holds; `device` is that of training and evaluation in this
    process; `prepared_digest` stands in for the digest where `data` no longer holds all images.
    """

    configuration: DictConfig
    seed: int
    rounds: int
    data: DomainCollection
    shares: tuple[ClientShare, ...]
    client: ClientSettings
    runtime: RuntimeSettings
    device: torch.device
    prepared_digest: str | None = None

    @cached_property
    def data_digest(self) -> str:
        """SHA-256 of the images that were read, before they were divided among clients."""
        return self.prepared_digest or pictures_digest(self.data)

    def check(self) -> None:
        """Build what only the server needs, to find mistakes before any training.

        Raises
        ------
        ConfigurationError
            If model or strategy cannot be built.
        """
        self.new_model()
        self.new_strategy(lambda contents, key: MetricRecord())

    def new_model(self) -> nn.Module:
        """Build the model with the run's initial weights, the same in every process."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model: nn.Module = build_group(
                "model",
                self.configuration,
                num_classes=self.data.num_classes,
                in_channels=self.data.in_channels,
            )
        return model

    def new_strategy(
        self, train_metrics_aggr_fn: Callable[[list[RecordDict], str], MetricRecord]
    ) -> Strategy:
        """Build the strategy; `train_metrics_aggr_fn` aggregates a round's training metrics."""
        settings = group_settings(self.configuration, "strategy")
        defaults = {
            "min_train_nodes": 1,
            "min_evaluate_nodes": 1,
            "min_available_nodes": len(self.shares),
        }
        with named_part("strategy"):
            strategy: Strategy = instantiate(
                defaults | settings, train_metrics_aggr_fn=train_metrics_aggr_fn
            )
        return strategy


@lru_cache(maxsize=1)
def experiment_of(config_name: str, overrides: str) -> Experiment:
    """Build the experiment of a run configuration, or take the one prepared; once a process."""
    file = os.environ.get(PREPARED_VARIABLE)
    loaded = load_prepared(Path(file), _notes(config_name, overrides)) if file else None
    if loaded is None:
        return build_experiment(compose_configuration(config_name, overrides))
    data, shares, notes = loaded
    configuration = OmegaConf.create(notes[_CONFIGURATION])
    assert isinstance(configuration, DictConfig)
    OmegaConf.set_readonly(configuration, True)
    return _experiment(configuration, data, shares, notes[_DIGEST])


def prepare_experiment(
    experiment: Experiment, file: Path, config_name: str, overrides: str
) -> bool:
    """Save an experiment for the processes in whose environment `PREPARED_VARIABLE` names the file.

    `experiment_of` takes the file for this name and these overrides only. Returns whether it was
    saved. If not, each process builds it: there is no room for it, a partition of the user's own
    made shares of another form, or a text of the configuration would be taken for an interpolation.
    """
    configuration = resolved_yaml(experiment.configuration)
    if "${" in configuration:
        return False
    notes = {
        **_notes(config_name, overrides),
        _CONFIGURATION: configuration,
        _DIGEST: experiment.data_digest,
    }
    try:
        save_prepared(file, experiment.data, experiment.shares, notes)
    except (OSError, RuntimeError, ValueError, SafetensorError):
        return False
    return True


def build_experiment(configuration: DictConfig) -> Experiment:
    """Load the data and divide them among the clients.

    Raises
    ------
    ConfigurationError
        If a part cannot be built; the message names it and keeps the part's own words.
    """
    seed = int(configuration.seed)
    data: DomainCollection = build_group("dataset", configuration)
    partition = build_group("partition", configuration)
    with named_part("partition"):
        shares = tuple(partition.split(data, seed))
    return _experiment(configuration, data, shares)


def _experiment(
    configuration: DictConfig,
    data: DomainCollection,
    shares: tuple[ClientShare, ...],
    prepared_digest: str | None = None,
) -> Experiment:
    with named_part("runtime"):
        runtime = runtime_settings(configuration)
        device = available_device(None if runtime.device == "auto" else runtime.device)
    return Experiment(
        configuration=configuration,
        seed=int(configuration.seed),
        rounds=int(configuration.rounds),
        data=data,
        shares=shares,
        client=build_group("client", configuration),
        runtime=runtime,
        device=device,
        prepared_digest=prepared_digest,
    )


def _notes(config_name: str, overrides: str) -> dict[str, str]:
    return {"version": __version__, "config-name": config_name, "overrides": overrides}


def build_group(group: str, configuration: DictConfig, **arguments: Any) -> Any:
    """Build what a group of any run's configuration describes, with these further arguments.

    Raises
    ------
    ConfigurationError
        If the group does not say what to build, or it cannot be built.
    """
    node = configuration.get(group)
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ConfigurationError(
            f"{group}: the configuration does not say how to build it: {group}._target_ is missing"
        )
    with named_part(group):
        return instantiate(group_settings(configuration, group), **arguments)
