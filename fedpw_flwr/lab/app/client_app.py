"""The ClientApp: one client's part of a round, trained on the images of its partition.

The client is an ordinary NumPyClient inside `FedPWClient`, which masks and rescales its update on
the device it trains on when the strategy asks for that.

A worker process is any client in any round: data and model are built once a worker, and the model
is reloaded in place.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy.typing as npt
import torch
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.common import Scalar
from torch import nn

from fedpw_flwr.client import FedPWClient, numpy_client_app
from fedpw_flwr.client.timings import TimingsMod
from fedpw_flwr.lab.config.configuration import ConfigurationError
from fedpw_flwr.lab.data.partition import ClientShare
from fedpw_flwr.lab.experiment import Experiment, experiment_of
from fedpw_flwr.lab.training.evaluation import evaluate as evaluate_model
from fedpw_flwr.lab.training.loop import client_generator
from fedpw_flwr.lab.training.loop import train as train_model
from fedpw_flwr.lab.training.model_arrays import overwrite_model, read_model
from fedpw_flwr.lab.training.threads import use_assigned_cpus
from fedpw_flwr.wire.records import INITIAL_LOSS, REPORT_INITIAL_LOSS

NDArrays = list[npt.NDArray[Any]]


class DomainClient(NumPyClient):
    """A client of an experiment that trains on its share of one domain.

    The model is the worker's; it is reloaded in every message.
    """

    def __init__(self, experiment: Experiment, model: nn.Module, share: ClientShare) -> None:
        self.experiment, self.model, self.share = experiment, model, share

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train the global model on this client's images; report the mean training loss.

        Where the server asks for it, also ``initial_loss``, the loss of the global model itself
        over all of these images. Training is the same bit for bit.
        """
        experiment, share = self.experiment, self.share
        overwrite_model(self.model, parameters)
        metrics: dict[str, Scalar] = {}
        if config.get(REPORT_INITIAL_LOSS):
            initial = evaluate_model(self.model, share.train, experiment.normalisation)
            metrics[INITIAL_LOSS] = initial.loss
        generator = client_generator(experiment.seed, int(config["server-round"]), share.client_id)
        # A model with dropout draws from the global source.
        torch.manual_seed(generator.initial_seed())
        loss = train_model(
            self.model,
            share.train,
            experiment.client,
            experiment.normalisation,
            generator=generator,
            # Flower's FedProx sends it.
            proximal_mu=float(config.get("proximal-mu", 0.0)),
        )
        return read_model(self.model), len(share.train), {**metrics, "train_loss": loss}

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Evaluate the global model on the client's own test images, else on its domain's."""
        experiment, share = self.experiment, self.share
        overwrite_model(self.model, parameters)
        domains = {domain.name: domain for domain in experiment.data.domains}
        test = domains[share.domain].test if share.test is None else share.test
        result = evaluate_model(self.model, test, experiment.normalisation)
        return result.loss, result.num_examples, {"eval_acc": result.accuracy}


def client_fn(context: Context) -> FedPWClient:
    """Build the client of a node, named by its partition: the same client from run to run.

    ConfigurationError if the configuration cannot be used, or the federation has another number of
    clients.
    """
    run = _run_of(context)
    experiment = experiment_of(*run)
    partition, partitions = _partition_of(context)
    if partitions != len(experiment.shares):
        raise ConfigurationError(
            f"the federation has {partitions} clients, the experiment {len(experiment.shares)}: "
            f"start it with num-supernodes={len(experiment.shares)}"
        )
    if not 0 <= partition < partitions:
        raise ConfigurationError(
            f"partition-id={partition}: the {partitions} clients count from 0 to {partitions - 1}"
        )
    client = DomainClient(experiment, worker_model(*run), experiment.shares[partition])
    return FedPWClient(client, device=experiment.device, client_id=partition)


def _run_of(context: Context) -> tuple[str, str]:
    """Return the name of the run's configuration, and its overrides."""
    return str(context.run_config["config-name"]), str(context.run_config["overrides"])


app = numpy_client_app(
    client_fn, mods=[TimingsMod(lambda context: experiment_of(*_run_of(context)).runtime.profile)]
)


def _partition_of(context: Context) -> tuple[int, int]:
    node = context.node_config
    if "partition-id" not in node or "num-partitions" not in node:
        raise ConfigurationError(
            "this node does not say which client it is: start the SuperNode with "
            '--node-config "partition-id=0 num-partitions=2" (numbers of your federation)'
        )
    return int(node["partition-id"]), int(node["num-partitions"])


@lru_cache(maxsize=8)
def worker_model(config_name: str, overrides: str) -> nn.Module:
    """Build this process's model of a run, once, where it trains and tests."""
    use_assigned_cpus()
    experiment = experiment_of(config_name, overrides)
    return experiment.new_model().to(experiment.device)
