"""The paper's method and nothing else: no Flower, no files, no configuration.

Guan, Huang, Guo, Yuan, Yang, Ye, "Rethinking Fair Federated Learning from Parameter and Client
View", NeurIPS 2025. Adaptive Weighted Aggregation is in `direction`, `memory` and `weights`,
Parameter Adjustment in `adjustment`; `server_step` puts both together with an `engine`, of which
`reference` is the one to read; `client_step` is what a client can do to its own update.
"""

from fedpw_flwr.algorithm.client_step import (
    AdjustmentState,
    AppliedAdjustment,
    ClientResult,
    Consensus,
    SentAdjustment,
)
from fedpw_flwr.algorithm.memory import ClientSignal, SignalState, WeightingState
from fedpw_flwr.algorithm.server_step import ServerStep, server_step
from fedpw_flwr.algorithm.settings import FedPWSettings
from fedpw_flwr.algorithm.tensors import TensorKind, classify_tensors
from fedpw_flwr.algorithm.weights import RoundWeights

__all__ = [
    "AdjustmentState",
    "AppliedAdjustment",
    "ClientResult",
    "ClientSignal",
    "Consensus",
    "FedPWSettings",
    "RoundWeights",
    "SentAdjustment",
    "ServerStep",
    "SignalState",
    "TensorKind",
    "WeightingState",
    "classify_tensors",
    "server_step",
]
