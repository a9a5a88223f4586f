"""FedPW on a client: a wrapper around a NumPyClient, and a mod for a ClientApp."""

from fedpw_flwr.client.mod import FedPWMod, fedpw_mod
from fedpw_flwr.client.numpy_client import FedPWClient
from fedpw_flwr.client.numpy_client_app import numpy_client_app

__all__ = ["FedPWClient", "FedPWMod", "fedpw_mod", "numpy_client_app"]
