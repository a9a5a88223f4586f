"""FedPW for Flower: fair federated learning by parameter adjustment and adaptive weights.

Guan, Huang, Guo, Yuan, Yang, Ye, "Rethinking Fair Federated Learning from Parameter and Client
View", NeurIPS 2025.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedpw_flwr.strategy import FedPW, MissingLossError

__all__ = ["FedPW", "MissingLossError"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the strategy when it is asked for: the command's first second needs no PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fedpw_flwr import strategy

    return getattr(strategy, name)
