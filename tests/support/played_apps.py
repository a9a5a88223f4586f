"""Play apps of one file each in this process, and print what their strategies decided.

`python -m support.played_apps FILE...`: each has a ServerApp `server` and a ClientApp `client`.
Flower's apps, strategies, records and messages are the real ones; only the network is missing. The
last line that is printed is JSON: for each file the metrics of its rounds, and how many clients
trained in them.
"""

from __future__ import annotations

import functools
import json
import runpy
import sys
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedpw_flwr import FedPW
from fedpw_flwr.legacy import FedPW as LegacyFedPW
from support.grid import ClientsGrid, running

CLIENTS = 4
rounds: list[dict[str, Any]] = []


def note(strategy: type, step: str) -> None:
    """Write down what each call of a strategy's aggregation returns."""
    aggregate = getattr(strategy, step)

    @functools.wraps(aggregate)
    def noted(self: Any, server_round: int, replies: Any, *failures: Any) -> Any:
        arrays, metrics = aggregate(self, server_round, replies, *failures)
        lost = [reply for reply in replies if isinstance(reply, Message) and reply.has_error()]
        rounds.append({"trained": len(replies) - len(lost), **(metrics or {})})
        return arrays, metrics

    setattr(strategy, step, noted)


def play(file: str) -> list[dict[str, Any]]:
    """Run the ServerApp of a file with its ClientApp at every node; return its rounds."""
    app = runpy.run_path(file)
    configs = [{"partition-id": index, "num-partitions": CLIENTS} for index in range(CLIENTS)]
    contexts = [Context(1, 100 + index, one, RecordDict(), {}) for index, one in enumerate(configs)]
    grid = ClientsGrid({each.node_id: running(app["client"], each) for each in contexts})
    grid.set_run(Run.create_empty(1))
    rounds.clear()
    app["server"](grid, Context(1, 0, {}, RecordDict(), {}))
    return list(rounds)


def main() -> None:
    """Play the files that were named."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    for strategies, step in (
        ((FedAvg, FedPW), "aggregate_train"),
        ((LegacyFedAvg, LegacyFedPW), "aggregate_fit"),
    ):
        for strategy in strategies:
            note(strategy, step)
    played = [play(file) for file in sys.argv[1:]]
    print(f"\n{json.dumps(played)}")


if __name__ == "__main__":
    main()
