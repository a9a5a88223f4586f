"""Strategies that FedPW is compared with, each a small file on what they have in common."""

from fedpw_flwr.baselines.afl import AFL
from fedpw_flwr.baselines.fedavg import EqualFedAvg, FedAdam, FedAvg, FedAvgM, FedProx
from fedpw_flwr.baselines.fedheal import FedHEAL
from fedpw_flwr.baselines.fedmgda_plus import FedMGDAPlus
from fedpw_flwr.baselines.qfedavg import QFedAvg
from fedpw_flwr.baselines.term import TERM

__all__ = [
    "AFL",
    "TERM",
    "EqualFedAvg",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedHEAL",
    "FedMGDAPlus",
    "FedProx",
    "QFedAvg",
]
