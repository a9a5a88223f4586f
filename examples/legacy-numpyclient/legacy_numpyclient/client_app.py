"""legacy-numpyclient: A Flower / PyTorch app."""

import torch
from flwr.app import Context
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import NDArrays, Scalar

from fedpw_flwr import FedPWClient
from legacy_numpyclient.task import Net, get_weights, load_data, set_weights, test, train


class FlowerClient(NumPyClient):
    """Trains and tests the model on the data of one partition."""

    def __init__(self, context: Context) -> None:
        self.config = context.run_config
        self.partition_id = context.node_config["partition-id"]
        self.trainloader, self.testloader = load_data(
            self.partition_id, context.node_config["num-partitions"], self.config["batch-size"]
        )
        self.net = Net()
        self.device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train the model on local data."""
        set_weights(self.net, parameters)
        # Batches are drawn alike in every run of the same seed, on whichever worker it happens.
        torch.manual_seed(hash((self.config["seed"], config["server-round"], self.partition_id)))
        train_loss = train(
            self.net,
            self.trainloader,
            self.config["local-epochs"],
            self.config["learning-rate"],
            self.device,
        )
        return get_weights(self.net), len(self.trainloader.dataset), {"train_loss": train_loss}

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Evaluate the model on local data."""
        set_weights(self.net, parameters)
        loss, accuracy = test(self.net, self.testloader, self.device)
        return loss, len(self.testloader.dataset), {"accuracy": accuracy}


def client_fn(context: Context) -> Client:
    """Build the client of a node."""
    return FedPWClient(FlowerClient(context)).to_client()


app = ClientApp(client_fn=client_fn)
