"""FedPW for Flower: fair federated learning by parameter adjustment and adaptive weights.

Guan, Huang, Guo, Yuan, Yang, Ye, "Rethinking Fair Federated Learning from Parameter and Client
View", NeurIPS 2025.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedpw_flwr.client import FedPWClient, FedPWMod, fedpw_mod, numpy_client_app
    from fedpw_flwr.strategy import FedPW, MissingLossError, TooFewClientsError

__all__ = [
    "FedPW",
    "FedPWClient",
    "FedPWMod",
    "MissingLossError",
    "TooFewClientsError",
    "fedpw_mod",
    "numpy_client_app",
]
__version__ = "0.2.0"

_MODULES = dict.fromkeys(("FedPW", "MissingLossError", "TooFewClientsError"), "fedpw_flwr.strategy")


def __getattr__(name: str) -> Any:
    """Import a part when it is asked for: the command's first second needs no PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "fedpw_flwr.client")), name)
