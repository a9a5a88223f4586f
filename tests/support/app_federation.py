"""The app's federation inside one process: eight real ClientApps, no network.

Every message and reply is written to Flower's wire format and read back, so that what arrives is
what would arrive from another machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedpw_flwr.lab.app import client_app
from fedpw_flwr.lab.experiment import Experiment, experiment_of
from support.clients import over_the_wire
from support.grid import ClientsGrid, running

TRAINING_PICTURES = {"scans": 24, "textured": 20, "blurred": 20, "fonts": 12}
"""Of each client of a domain: unequal, so that weights by examples are not equal ones."""

DOMAIN_OF_CLIENT = [domain for domain in TRAINING_PICTURES for _ in range(2)]

NUM_CLIENTS = len(DOMAIN_OF_CLIENT)

OVERRIDES = (
    "model=cnn model.width=4 client.epochs=1 rounds=2 runtime.device=cpu "
    "partition.train_per_client={"
    + ",".join(f"{domain}:{count}" for domain, count in TRAINING_PICTURES.items())
    + "}"
)
"""A run of milliseconds a round; more overrides may follow, separated by a blank."""

RUN_ID = 7


def node_of(client: int) -> int:
    """Flower's id of a client's node: nothing about the client can be read from it."""
    return 1000 + 37 * ((client * 5 + 3) % 101)


def experiment(overrides: str = OVERRIDES) -> Experiment:
    return experiment_of("config", overrides)


def initial_arrays(overrides: str = OVERRIDES) -> ArrayRecord:
    return ArrayRecord(experiment(overrides).new_model().state_dict())


def client_context(
    client: int, num_clients: int = NUM_CLIENTS, overrides: str = OVERRIDES
) -> Context:
    return Context(
        run_id=RUN_ID,
        node_id=node_of(client),
        node_config={"partition-id": client, "num-partitions": num_clients},
        state=RecordDict(),
        run_config={"config-name": "config", "overrides": overrides, "output-folder": ""},
    )


def server_context(folder: Path | str, overrides: str = OVERRIDES) -> Context:
    return Context(
        run_id=RUN_ID,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config={
            "config-name": "config",
            "overrides": overrides,
            "output-folder": str(folder),
        },
    )


def message_to(
    client: int, arrays: ArrayRecord, kind: str = "train", server_round: int = 1
) -> Message:
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": server_round})})
    message = Message(content, dst_node_id=node_of(client), message_type=kind)
    message.metadata.__dict__["_message_id"] = f"{kind}-{server_round}-{client}"
    return message


class AppGrid(ClientsGrid):
    """Deliver each message at once to the ClientApp of its node and hand back the replies.

    `apps` are ClientApps by client in place of the package's own; `connected` is how many nodes are
    connected each time the server asks, and then all of them.
    """

    def __init__(
        self,
        apps: Mapping[int, ClientApp] | None = None,
        overrides: str = OVERRIDES,
        num_clients: int = NUM_CLIENTS,
        connected: Iterable[int] | None = None,
    ) -> None:
        apps = apps or {}
        super().__init__(
            {
                node_of(client): running(
                    apps.get(client, client_app.app),
                    client_context(client, num_clients, overrides),
                )
                for client in range(num_clients)
            }
        )
        self._connected = itertools.chain(connected or (), itertools.repeat(num_clients))

    def get_node_ids(self) -> Iterable[int]:
        return list(super().get_node_ids())[: next(self._connected)]

    def _answers(self, message: Message) -> list[Message]:
        return [over_the_wire(reply) for reply in super()._answers(over_the_wire(message))]
