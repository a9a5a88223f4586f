"""An experiment, built: from the configuration to images, clients' shares, model and strategy.

The command builds it, to find mistakes, and provides it: to the ServerApp in its own process, and
to the workers, which map the images from shared memory. Where nobody provides it (`flwr run`, a
SuperNode), each process builds it once from the configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fedpw_flwr.device import available_device
from fedpw_flwr.lab.config.configuration import (
    ConfigurationError,
    RuntimeSettings,
    compose_configuration,
    group_settings,
    named_part,
    resolved_yaml,
    runtime_settings,
)
from fedpw_flwr.lab.config.setting_rules import broken_rules
from fedpw_flwr.lab.data.examples import DomainCollection, Examples, joined
from fedpw_flwr.lab.data.partition import ClientShare
from fedpw_flwr.lab.training.batches import Normalisation
from fedpw_flwr.lab.training.settings import ClientSettings
from fedpw_flwr.rounds.run_state import RANDOM_STATE


@dataclass(frozen=True, eq=False)
class Experiment:
    """Everything a process needs to take part in a run.

    ``shares[k]`` is what client k holds; `device` is that of training and evaluation in this
    process.
    """

    configuration: DictConfig
    seed: int
    rounds: int
    data: DomainCollection
    shares: tuple[ClientShare, ...]
    client: ClientSettings
    runtime: RuntimeSettings
    device: torch.device

    @cached_property
    def data_digest(self) -> str:
        """SHA-256 of the images that were read, before they were divided among clients."""
        return self.data.digest()

    @cached_property
    def normalisation(self) -> Normalisation:
        """What makes of images what the model takes, on this process's device."""
        return Normalisation(self.data.mean, self.data.std, self.device)

    @cached_property
    def test_sets(self) -> tuple[Examples, ...]:
        """Every domain's test images; then the clients' own, joined, where all clients keep some.

        Some clients without would make figures over the others look like those over all.
        """
        own = [share.test for share in self.shares if share.test is not None]
        kept = (joined(own),) if own and len(own) == len(self.shares) else ()
        return (*(domain.test for domain in self.data.domains), *kept)

    def check(self) -> None:
        """Build what only the server needs, and let the model classify an example.

        ConfigurationError if model or strategy cannot be built, or the model does not fit the data.
        """
        model = self.new_model().eval()
        # What only runs on a GPU is not tried where it would take memory of one.
        if self.device.type == "cpu":
            with named_part("model"), RANDOM_STATE, torch.random.fork_rng():
                self._check_fits(model)
        self.new_strategy(lambda contents, key: MetricRecord())

    def _check_fits(self, model: nn.Module) -> None:
        data = self.data
        one = self.normalisation(data.domains[0].test.features[:1])
        try:
            with torch.inference_mode():
                found = tuple(model(one.contiguous()).shape)
        except Exception as error:
            remedy = "" if data.are_images else "; for rows of a table choose mlp or logistic"
            raise ValueError(
                f"it does not take examples of shape {data.shape}, as the data set has{remedy}: "
                f"{error}"
            ) from error
        if found != (1, data.num_classes):
            raise ValueError(f"one example gives {found}, not (1, {data.num_classes}) logits")

    def new_model(self) -> nn.Module:
        """Build the model with the run's initial weights, the same in every process."""
        # The source of random numbers is the process's, and there may be other runs in it.
        with RANDOM_STATE, torch.random.fork_rng():
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
        defaults = {
            "min_train_nodes": 1,
            "min_evaluate_nodes": 1,
            "min_available_nodes": len(self.shares),
        }
        settings = group_settings(self.configuration, "strategy")
        with named_part("strategy"):
            strategy: Strategy = instantiate(
                defaults | settings, train_metrics_aggr_fn=train_metrics_aggr_fn
            )
        return strategy


_provided: dict[tuple[str, str], Experiment] = {}


def experiment_of(config_name: str, overrides: str) -> Experiment:
    """Return the experiment of a run configuration: the one provided, else built once."""
    provided = _provided.get((config_name, overrides))
    return _built(config_name, overrides) if provided is None else provided


@lru_cache(maxsize=1)
def _built(config_name: str, overrides: str) -> Experiment:
    return build_experiment(compose_configuration(config_name, overrides))


def provide(experiment: Experiment, config_name: str, overrides: str) -> Callable[[], object]:
    """Let `experiment_of` return in this process what was built; returns what lets go of it."""
    _provided[config_name, overrides] = experiment
    return partial(_provided.pop, (config_name, overrides), None)


def carried(
    experiment: Experiment, config_name: str, overrides: str
) -> Callable[[], Callable[[], object]]:
    """Return what provides the experiment in another process, as `provide` does in this one.

    The process finds its own device. Of the training images only those that clients hold go along.
    """
    one = torch.zeros(1, dtype=torch.int64)
    data = experiment.data
    domains = tuple(replace(domain, train=domain.train.select(one)) for domain in data.domains)
    text = resolved_yaml(experiment.configuration)
    # What is resolved here need not be there; a text that looks like an interpolation is left.
    configuration: Any = experiment.configuration if "${" in text else OmegaConf.create(text)
    sent = replace(experiment, configuration=configuration, data=replace(data, domains=domains))
    # Found anew, the digest would be another, and the clients' own test images a second copy.
    found = {"data_digest": experiment.data_digest, "test_sets": experiment.test_sets}
    return partial(_take, sent, found, config_name, overrides)


def _take(
    sent: Experiment, found: dict[str, Any], config_name: str, overrides: str
) -> Callable[[], object]:
    experiment = replace(sent, device=_device(sent.runtime))
    vars(experiment).update(found)
    return provide(experiment, config_name, overrides)


def build_experiment(configuration: DictConfig) -> Experiment:
    """Load the data and divide them among the clients.

    ConfigurationError if a part cannot be built; it names the part and keeps the part's own words.
    """
    seed = int(configuration.seed)
    # Data or divisions of the user's own may draw from it.
    with RANDOM_STATE:
        data = build_data(configuration)
        partition = build_group("partition", configuration)
        with named_part("partition"):
            shares = tuple(partition.split(data, seed))
    runtime = runtime_settings(configuration)
    return Experiment(
        configuration=configuration,
        seed=seed,
        rounds=int(configuration.rounds),
        data=data,
        shares=shares,
        client=build_group("client", configuration),
        runtime=runtime,
        device=_device(runtime),
    )


def _device(runtime: RuntimeSettings) -> torch.device:
    with named_part("runtime"):
        return available_device(None if runtime.device == "auto" else runtime.device)


def build_data(configuration: DictConfig) -> DomainCollection:
    """Build the data set; one whose `seed` is null gets the run's. Raises as `build_group`."""
    dataset = configuration.get("dataset") or {}
    own = {"seed": int(configuration.seed)} if dataset.get("seed", 0) is None else {}
    data: DomainCollection = build_group("dataset", configuration, **own)
    return data


def build_group(group: str, configuration: DictConfig, **arguments: Any) -> Any:
    """Build what a group of any run's configuration describes, with these further arguments.

    ConfigurationError if the group does not say what to build, or it cannot be built.
    """
    node = configuration.get(group)
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ConfigurationError(
            f"{group}: the configuration does not say how to build it: {group}._target_ is missing"
        )
    settings = group_settings(configuration, group)
    wrong = broken_rules(group, settings)
    if wrong:
        raise ConfigurationError("\n".join(wrong))
    with named_part(group):
        return instantiate(settings, **arguments)
