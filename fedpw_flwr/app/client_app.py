"""The ClientApp: one client's part of a round, trained on the pictures of its partition.

Ray keeps a worker process for the whole run and gives it any client in any round: data and model
are built once a worker, and the model is reloaded in place.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedpw_flwr.data.partition import ClientShare
from fedpw_flwr.experiment.configuration import ConfigurationError
from fedpw_flwr.experiment.experiment import Experiment, experiment_of
from fedpw_flwr.strategy.quarantine import IDENTITY_KEY, IDENTITY_RECORD
from fedpw_flwr.training.evaluation import evaluate as evaluate_model
from fedpw_flwr.training.loop import client_generator
from fedpw_flwr.training.loop import train as train_model

__all__ = ["app"]

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this client's pictures; reply with it and the mean training loss.

    The reply names the client by its partition, so that it stays the same client from run to run.
    """
    experiment, model, share = _prepare(message, context)
    server_round = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
    generator = client_generator(experiment.seed, server_round, share.client_id)
    # A model with dropout draws from the global source.
    torch.manual_seed(generator.initial_seed())
    loss = train_model(
        model,
        share.train,
        experiment.client,
        mean=experiment.data.mean,
        std=experiment.data.std,
        device=experiment.device,
        generator=generator,
    )
    reply = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"train_loss": loss, "num-examples": len(share.train)}),
            IDENTITY_RECORD: ConfigRecord({IDENTITY_KEY: share.client_id}),
        }
    )
    return Message(reply, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global model on the test pictures of this client's domain."""
    experiment, model, share = _prepare(message, context)
    domain = next(domain for domain in experiment.data.domains if domain.name == share.domain)
    result = evaluate_model(
        model,
        domain.test,
        mean=experiment.data.mean,
        std=experiment.data.std,
        device=experiment.device,
    )
    metrics = MetricRecord(
        {
            "eval_loss": result.loss,
            "eval_acc": result.accuracy,
            "num-examples": result.num_examples,
        }
    )
    reply = RecordDict(
        {
            "metrics": metrics,
            IDENTITY_RECORD: ConfigRecord({IDENTITY_KEY: share.client_id}),
        }
    )
    return Message(reply, reply_to=message)


def _prepare(message: Message, context: Context) -> tuple[Experiment, nn.Module, ClientShare]:
    config_name = str(context.run_config["config-name"])
    overrides = str(context.run_config["overrides"])
    experiment = experiment_of(config_name, overrides)
    partition, partitions = _place(context)
    if partitions != len(experiment.shares):
        raise ConfigurationError(
            f"the federation has {partitions} clients, the experiment {len(experiment.shares)}: "
            f"start it with num-supernodes={len(experiment.shares)}"
        )
    if not 0 <= partition < partitions:
        raise ConfigurationError(
            f"partition-id={partition}: the {partitions} clients count from 0 to {partitions - 1}"
        )
    model = _worker_model(config_name, overrides)
    (arrays,) = message.content.array_records.values()
    model.load_state_dict(arrays.to_torch_state_dict())
    return experiment, model, experiment.shares[partition]


def _place(context: Context) -> tuple[int, int]:
    node = context.node_config
    if "partition-id" not in node or "num-partitions" not in node:
        raise ConfigurationError(
            "this node does not say which client it is: start the SuperNode with "
            '--node-config "partition-id=0 num-partitions=2" (numbers of your federation)'
        )
    return int(node["partition-id"]), int(node["num-partitions"])


@lru_cache(maxsize=1)
def _worker_model(config_name: str, overrides: str) -> nn.Module:
    return experiment_of(config_name, overrides).new_model()
