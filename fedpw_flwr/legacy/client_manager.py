"""A client manager of Flower's legacy server that draws the same clients in every run."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from flwr.common import Code, GetPropertiesIns
from flwr.server import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.criterion import Criterion

from fedpw_flwr.strategy.sampling import ANSWER_TIMEOUT
from fedpw_flwr.wire.records import IDENTITY_KEY

logger = logging.getLogger("flwr")

_AT_ONCE = 32
"""Clients that are asked at the same time."""


class OrderedClientManager(SimpleClientManager):
    """A `SimpleClientManager` that samples from the clients in the order of their identities.

    Flower's samples in the order in which clients came, which is another one in every run. Every
    client is asked once who it is (``get_properties``); ``FedPWClient(client_id=...)`` answers, or
    a client of your own that returns its number as ``"client-id"``. Those that do not answer come
    last, by node id, which another run does not repeat.

    Give it to ``ServerAppComponents(client_manager=...)`` or to ``CheckpointedServer``, which goes
    on with its draws.

    Parameters
    ----------
    seed : int | None (default: None)
        The same seed draws the same clients. None: a number from `random` at the first draw.
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self._identities: dict[str, int | None] = {}
        self._seed = seed
        self._draws = 0

    def saved_draws(self) -> dict[str, int | None]:
        """Return the seed and the number of draws so far."""
        return {"seed": self._seed, "draws": self._draws}

    def restore_draws(self, state: Mapping[str, int | None]) -> None:
        """Go on with the draw after those that `saved_draws` counted."""
        self._seed, self._draws = state["seed"], int(state["draws"] or 0)

    def sample(
        self,
        num_clients: int,
        min_num_clients: int | None = None,
        criterion: Criterion | None = None,
    ) -> list[ClientProxy]:
        """Sample as `SimpleClientManager` does, from the clients in their order."""
        self.wait_for(num_clients if min_num_clients is None else min_num_clients)
        clients = list(self.clients.values())
        # Where all take part, the order does not matter.
        if num_clients < len(clients):
            self._ask([client for client in clients if client.cid not in self._identities])
        if criterion is not None:
            clients = [client for client in clients if criterion.select(client)]
        if num_clients > len(clients):
            logger.info(
                "Sampling failed: %s clients are there, %s are asked for", len(clients), num_clients
            )
            return []
        if self._seed is None:
            self._seed = random.getrandbits(64)
        self._draws += 1
        # Not the global generator: Flower's heartbeats take numbers from it at any time.
        generator = random.Random(f"{self._seed} {self._draws}")
        return generator.sample(sorted(clients, key=self._rank), num_clients)

    def _rank(self, client: ClientProxy) -> tuple[bool, int, str]:
        identity = self._identities.get(client.cid)
        return identity is None, identity or 0, client.cid

    def _ask(self, clients: Sequence[ClientProxy]) -> None:
        """Ask clients who they are."""
        found = stated_identities(clients)
        self._identities.update(zip((client.cid for client in clients), found, strict=True))
        silent = found.count(None)
        if silent:
            logger.info(
                "%s of %s new clients do not say who they are: they are sampled by node id, which "
                "another run would not repeat",
                silent,
                len(clients),
            )


def stated_identities(clients: Sequence[ClientProxy]) -> list[int | None]:
    """Ask clients who they are, all at once; None for each that does not say."""
    with ThreadPoolExecutor(_AT_ONCE) as asking:
        return list(asking.map(_identity, clients))


def _identity(client: ClientProxy) -> int | None:
    # Whatever goes wrong at a client must not end the run: it is sampled by its node id.
    with suppress(Exception):
        answer = client.get_properties(GetPropertiesIns({}), timeout=ANSWER_TIMEOUT, group_id=None)
        identity = answer.properties.get(IDENTITY_KEY)
        if answer.status.code == Code.OK and type(identity) is int and identity >= 0:
            return identity
    return None
