"""FedPW for Flower's Message API: the strategy, its screening of replies, and its records."""

from fedpw_flwr.strategy.attendance import TooFewClientsError
from fedpw_flwr.strategy.fedpw import FedPW
from fedpw_flwr.strategy.quarantine import MissingLossError

__all__ = ["FedPW", "MissingLossError", "TooFewClientsError"]
