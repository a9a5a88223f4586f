"""FedPW for projects on Flower's legacy API: ``client_fn`` and ``ServerAppComponents``.

They change one line, the strategy. The rounds are those of `fedpw_flwr.FedPW`: the same screening,
the same state, the same results. For a run that goes on where it stopped take `CheckpointedServer`,
for draws that another run repeats `OrderedClientManager`.
"""

from fedpw_flwr.legacy.client_manager import OrderedClientManager
from fedpw_flwr.legacy.server import CheckpointedServer
from fedpw_flwr.legacy.strategy import FedPW
from fedpw_flwr.rounds.attendance import TooFewClientsError
from fedpw_flwr.rounds.faults import MissingLossError

__all__ = [
    "CheckpointedServer",
    "FedPW",
    "MissingLossError",
    "OrderedClientManager",
    "TooFewClientsError",
]
