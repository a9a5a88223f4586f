"""A ClientApp for Message-API strategies out of a NumPyClient: the bridge that Flower lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.common import NDArrays

from fedpw_flwr.client.numpy_client import FedPWClient, can, checked_triple
from fedpw_flwr.client.request import only_array_record, only_config_record
from fedpw_flwr.client.timings import phase
from fedpw_flwr.wire.records import (
    ANSWERS_KEY,
    IDENTITY_ACTION,
    IDENTITY_RECORD,
    identity_record,
    records_of_metrics,
)


def numpy_client_app(
    client_fn: Callable[[Context], NumPyClient], *, mods: list[Mod] | None = None
) -> ClientApp:
    """Make a ClientApp that any Message-API strategy can talk to out of a NumPyClient factory.

    Training messages become ``fit``, evaluation messages ``evaluate``, queries ``get_properties``.
    The arrays reach the client as a list in the order of the server's ArrayRecord and go back
    under the same names; every entry of the ConfigRecord reaches it, and every metric goes back:
    numbers in the MetricRecord ``metrics`` (with ``num-examples`` and, from evaluation,
    ``eval_loss``), what a MetricRecord refuses in the ConfigRecord ``other-metrics``, and the
    client id ``client-id`` in the ConfigRecord ``identity``.

    Parameters
    ----------
    client_fn : Callable[[Context], NumPyClient]
        Builds the client of a node; called for every message. Return a `FedPWClient` for FedPW's
        adjustment on the client; any other NumPyClient works, too.
    mods : list[Mod] | None (default: None)
        Flower's mods for training and evaluation. The first in the list is the outermost.

    Returns
    -------
    ClientApp
        The app to name in ``pyproject.toml``.

    Examples
    --------
    >>> app = numpy_client_app(lambda context: FedPWClient(FlowerClient(context)))
    """
    if not callable(client_fn):
        raise TypeError(
            f"numpy_client_app takes a function from Context to NumPyClient, got {client_fn!r}"
        )
    app = ClientApp()

    @app.train(mods=mods)
    def train(message: Message, context: Context) -> Message:
        with phase("set_up"):
            client = _client(client_fn, context, "fit")
        with phase("download"):
            arrays, received, config = _received(message)
        with phase("train"):
            result = client.fit(received, config)
        parameters, num_examples, metrics = checked_triple(
            result, "fit must return (parameters, num_examples, metrics)"
        )
        with phase("upload"):
            # Fewer are the first ones, and what is too many has no name: the server judges both.
            surplus = (f"surplus array {index}" for index in range(len(arrays), len(parameters)))
            named = zip((*arrays, *surplus), parameters, strict=False)
            content = _content({"num-examples": num_examples, **metrics})
            content["arrays"] = ArrayRecord({name: Array(np.asarray(one)) for name, one in named})
            return Message(content, reply_to=message)

    @app.evaluate(mods=mods)
    def evaluate(message: Message, context: Context) -> Message:
        with phase("set_up"):
            client = _client(client_fn, context, "evaluate")
        with phase("download"):
            _, received, config = _received(message)
        with phase("evaluate"):
            result = client.evaluate(received, config)
        loss, num_examples, metrics = checked_triple(
            result, "evaluate must return (loss, num_examples, metrics)"
        )
        content = _content({"eval_loss": loss, "num-examples": num_examples, **metrics})
        return Message(content, reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        config: dict[str, Any] = {}
        for record in message.content.config_records.values():
            config.update(record)
        properties = _client(client_fn, context, "get_properties").get_properties(config)
        content = RecordDict({"properties": ConfigRecord({**properties})})
        return Message(content, reply_to=message)

    @app.query(IDENTITY_ACTION)
    def identify(message: Message, context: Context) -> Message:
        client = client_fn(context)
        client_id = client.client_id if isinstance(client, FedPWClient) else None
        return Message(identity_record(client_id), reply_to=message)

    return app


def _content(metrics: dict[str, Any]) -> RecordDict:
    """Return a reply's records without arrays; a client with a name says that it can be asked."""
    content = records_of_metrics(metrics)
    identity = content.config_records.get(IDENTITY_RECORD)
    if identity is not None:
        identity[ANSWERS_KEY] = True
    return content


def _client(
    client_fn: Callable[[Context], NumPyClient], context: Context, method: str
) -> NumPyClient:
    """Build the client of a message, which has to have the method that answers it."""
    client = client_fn(context)
    if not isinstance(client, NumPyClient):
        raise TypeError(
            f"the function given to numpy_client_app returned {type(client).__name__}: return the "
            "NumPyClient itself, without .to_client()"
        )
    if not can(client, method):
        raise NotImplementedError(f"{type(client).__name__} has no {method}")
    return client


def _received(message: Message) -> tuple[ArrayRecord, NDArrays, dict[str, Any]]:
    """Return the model of a message, as it came and as arrays, and the configuration."""
    arrays = only_array_record(message.content)
    return arrays, arrays.to_numpy_ndarrays(), dict(only_config_record(message.content))
