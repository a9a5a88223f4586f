"""A federation of embedded digits in this process, which attacks.py and privacy_cost.py train.

Strategies and ClientApps are real, and train a small CNN in earnest; only the network is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import Result, Strategy
from server_step import nodes

from fedpw_flwr.lab.data.examples import DomainCollection, ImageSet
from fedpw_flwr.lab.models.cnn import SmallCNN
from fedpw_flwr.lab.training.batches import Normalisation
from fedpw_flwr.lab.training.evaluation import evaluate
from fedpw_flwr.lab.training.loop import client_generator, train
from fedpw_flwr.lab.training.settings import ClientSettings

IMAGE_SIZE, WIDTH = 16, 16
TRAINING = ClientSettings(epochs=2, batch_size=16, learning_rate=0.03, crop_padding=1)

LAST = 3
"""Rounds at the end whose accuracies are averaged."""


def play(
    strategy: Strategy,
    data: DomainCollection,
    sets: Sequence[ImageSet],
    seed: int,
    rounds: int,
    mods: list[Mod],
    *,
    width: int = WIDTH,
    told: Mapping[int, float] | None = None,
    config: ConfigRecord | None = None,
) -> tuple[Result, list[list[float]]]:
    """Train one federation from its seed, and test it on every domain in the last rounds.

    Node n is client n - 1 and trains on the images at that place; `told` are losses that clients
    report instead of their own. The accuracies are by round and domain, 0 to 1.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SmallCNN(data.num_classes, data.in_channels, width)
    normalisation = Normalisation(data.mean, data.std, "cpu")
    app = ClientApp(mods=mods)
    accuracies: list[list[float]] = []

    @app.train()
    def train_client(message: Message, context: Context) -> Message:
        client = context.node_id - 1
        server_round = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        loss = train(
            model,
            sets[client],
            TRAINING,
            normalisation,
            generator=client_generator(seed, server_round, client),
        )
        loss = (told or {}).get(client, loss)
        metrics = MetricRecord({"train_loss": loss, "num-examples": len(sets[client])})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    def test(server_round: int, arrays: ArrayRecord) -> None:
        if server_round > rounds - LAST:
            model.load_state_dict(arrays.to_torch_state_dict())
            accuracies.append(
                [evaluate(model, one.test, normalisation).accuracy for one in data.domains]
            )

    grid, initial = nodes(len(sets), app), ArrayRecord(model.state_dict())
    result = strategy.start(grid, initial, num_rounds=rounds, train_config=config, evaluate_fn=test)
    return result, accuracies
