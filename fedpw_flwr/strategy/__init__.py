"""FedPW for Flower's Message API: the strategy, its screening of replies, and its records."""

from fedpw_flwr.rounds.attendance import TooFewClientsError
from fedpw_flwr.rounds.faults import MissingLossError
from fedpw_flwr.strategy.fedpw import FedPW

__all__ = ["FedPW", "MissingLossError", "TooFewClientsError"]
