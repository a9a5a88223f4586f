"""deployment: A Flower / PyTorch app."""

from pathlib import Path

import torch
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from deployment.task import Net, get_weights, load_data, set_weights, test, train
from fedpw_flwr import FedPWClient, numpy_client_app


class SiteClient(NumPyClient):
    """Trains and tests the model on the data of one site."""

    def __init__(self, folder: Path, site: int) -> None:
        self.folder = folder
        self.site = site
        self.net = Net()
        self.device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train the model on the site's data, as the server's message says."""
        trainset = load_data(self.folder, "train")
        set_weights(self.net, parameters)
        # Batches are drawn alike in every run of the same seed.
        torch.manual_seed(hash((config["seed"], config["server-round"], self.site)))
        train_loss = train(
            self.net,
            trainset,
            config["local-epochs"],
            config["batch-size"],
            config["learning-rate"],
            self.device,
        )
        return get_weights(self.net), len(trainset), {"train_loss": train_loss}

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Test the model on the site's data."""
        testset = load_data(self.folder, "test")
        set_weights(self.net, parameters)
        loss, accuracy = test(self.net, testset, self.device)
        return loss, len(testset), {"accuracy": accuracy}


def site_of(context: Context) -> tuple[Path, int]:
    """Read from the node's configuration where the site's data are, and which site it is."""
    folder, site = (context.node_config.get(key) for key in ("data", "site"))
    if not isinstance(folder, str) or not isinstance(site, int) or isinstance(site, bool):
        raise ValueError(
            "start this SuperNode with its data folder and its number: "
            f"--node-config \"data='/srv/site' site=1\", not {dict(context.node_config)}"
        )
    return Path(folder), site


def client_fn(context: Context) -> NumPyClient:
    """Build the client of a site, known by the site's number whatever key or machine it has."""
    folder, site = site_of(context)
    return FedPWClient(SiteClient(folder, site), client_id=site)


app = numpy_client_app(client_fn)
