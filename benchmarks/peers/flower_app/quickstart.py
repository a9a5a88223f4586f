"""The ServerApp and the ClientApp of an app like Flower's PyTorch quickstart."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from workload import CLIENTS, Data, accuracy, network, read, train

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Play the rounds, and test the global network after each."""
    config = context.run_config
    data = read(Path(str(config["data"])))
    model = network()

    def test(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round == 0:
            return None
        model.load_state_dict(arrays.to_torch_state_dict())
        share = accuracy(model, data.test)
        with Path(str(config["output"])).open("a") as file:
            file.write(f"round {server_round} accuracy {share:.4f}\n")
        return MetricRecord({"accuracy": share})

    FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS).start(
        grid,
        ArrayRecord(model.state_dict()),
        num_rounds=int(config["rounds"]),
        evaluate_fn=test,
    )


@client.train()
def fit(message: Message, context: Context) -> Message:
    """Train the arriving network on the client's images."""
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images = images_of(str(context.run_config["data"])).clients[
        int(context.node_config["partition-id"])
    ]
    train(model, images)
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(images[1])}),
    }
    return Message(RecordDict(content), reply_to=message)


@cache
def images_of(archive: str) -> Data:
    """Read the images once a worker."""
    return read(Path(archive))
