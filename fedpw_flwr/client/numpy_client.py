"""FedPW for an existing NumPyClient: one wrapper around it, under either server API."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from flwr.client import Client, NumPyClient
from flwr.common import NDArrays, Scalar

from fedpw_flwr.client.masking import adjust_reply
from fedpw_flwr.client.request import take_request
from fedpw_flwr.client.timings import phase
from fedpw_flwr.device import available_device
from fedpw_flwr.wire.adjustment import REPORT_KEY
from fedpw_flwr.wire.records import IDENTITY_KEY

LossSource = Literal["fit", "evaluate"]

LOSS_KEY = "train_loss"
"""Metric under which the wrapper reports ℓ_k: the default of ``FedPW(train_loss_key=...)``."""


class FedPWClient(NumPyClient):
    """A NumPyClient around a NumPyClient that adjusts its updates as FedPW's server asks.

    The inner client trains as ever. Of its update Δ_k = w − w_k the entries of smallest magnitude
    are masked and those of the last round's consensus rescaled, on this client's own device
    (``FedPW(adjustment="client")``). Arrays come back in the shapes and dtypes in which they came,
    so any strategy can aggregate them; a server that asks for nothing gets them as trained.

    Nothing is kept between calls: Flower may build a new client for every message.

    Parameters
    ----------
    client : NumPyClient
        The client to wrap. What the wrapper has no attribute of its own for is read from it.
    device : str | torch.device | None (default: None)
        Where masking and rescaling run; None takes CUDA when there is one.
    loss_key : str (default: "train_loss")
        Metric of the inner ``fit`` that holds its mean training loss over all local batches.
    loss_source : "fit" | "evaluate" (default: "fit")
        Where the loss comes from when ``fit`` reports none under `loss_key`. "fit": nowhere, an
        error says so. "evaluate": from the inner ``evaluate``, called on the received model.
    client_id : int | None (default: None)
        Stable id of this client, for example its partition: FedPW's memory follows it over
        restarts and runs. None: Flower's node id.
    trainable : Sequence[int] | None (default: None)
        Indices of the trainable arrays in the list of parameters, for a server that asks clients to
        adjust their updates and does not know the arrays' names (a legacy one without
        ``array_names``). None: the server decides.

    Raises
    ------
    TypeError
        If `client` is no NumPyClient, or an argument has the wrong type.
    ValueError
        If `device` is not there, `loss_source` is unknown, or the client has no ``evaluate`` where
        the loss is to come from it.

    Examples
    --------
    >>> def client_fn(context):
    ...     return FedPWClient(FlowerClient(context)).to_client()
    """

    def __init__(
        self,
        client: NumPyClient,
        *,
        device: str | torch.device | None = None,
        loss_key: str = LOSS_KEY,
        loss_source: LossSource = "fit",
        client_id: int | None = None,
        trainable: Sequence[int] | None = None,
    ) -> None:
        if not isinstance(client, NumPyClient):
            hint = (
                "wrap it before .to_client(): FedPWClient(MyClient()).to_client()"
                if isinstance(client, Client)
                else "give the object whose class inherits from flwr.client.NumPyClient"
            )
            raise TypeError(f"FedPWClient wraps a NumPyClient, got {type(client).__name__}: {hint}")
        if isinstance(client, FedPWClient):
            raise TypeError("FedPWClient is already around this client: wrap it once")
        if loss_source not in get_args(LossSource):
            raise ValueError(
                f'loss_source={loss_source!r}: choose "fit" (the metric {loss_key!r} of fit) or '
                '"evaluate" (the loss of evaluate on the received model)'
            )
        if loss_source == "evaluate" and not can(client, "evaluate"):
            raise ValueError(
                f"{type(client).__name__} has no evaluate to take the loss from: write one, or "
                f"return {loss_key!r} in the metrics of fit"
            )
        if not isinstance(loss_key, str) or not loss_key:
            raise TypeError(f"loss_key must name a metric, got {loss_key!r}")
        if client_id is not None and (type(client_id) is not int or client_id < 0):
            raise TypeError(f"client_id must be a non-negative integer or None, got {client_id!r}")
        self.client = client
        self.device = available_device(device)
        self.loss_key = loss_key
        self.loss_source = loss_source
        self.client_id = client_id
        self.trainable = _checked_indices(trainable)

    def __getattr__(self, name: str) -> Any:
        """Give every other attribute as the inner client has it."""
        if name == "client" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self.client, name)

    def get_properties(self, config: dict[str, Scalar]) -> dict[str, Scalar]:
        """As the inner client does, with ``client-id`` where `client_id` was given."""
        return self._named(self.client.get_properties(config))

    def get_parameters(self, config: dict[str, Scalar]) -> NDArrays:
        """As the inner client does."""
        return self.client.get_parameters(config)

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train the inner client, then adjust its update as the server asked.

        `parameters` are w; FedPW's entries are taken out of `config` before the inner client sees
        it.

        Returns
        -------
        tuple[list[NDArray], int, dict[str, Scalar]]
            w − Δ̃_k in the shapes and dtypes of w (rows of bytes where the server asked for packed
            updates), the number of examples, and the inner client's metrics with the training loss
            ``train_loss`` (and under `loss_key`), ``client-id`` where it was given, and the report
            ``fedpw`` (bytes) where the server asked for an adjustment.

        Raises
        ------
        ValueError
            If there is no training loss, or the server's request cannot be read or carried out.
        TypeError
            If the inner ``fit`` returns something else than arrays, a count and metrics.
        """
        with phase("adjust"):
            config = dict(config)
            received = take_request(config)
            needs_received = received is not None or self.loss_source == "evaluate"
            # The inner client may train in place, on the very arrays it was given.
            start = [array.copy() for array in parameters] if needs_received else parameters
        trained, num_examples, metrics = _checked_fit(self.client.fit(parameters, config))
        if self.loss_key not in metrics and self.loss_source == "evaluate":
            # Arrays often are views of the model that evaluate is about to overwrite.
            trained = [np.array(array) for array in trained]
        metrics = self._named(self._with_loss(metrics, start, config))
        if received is None:
            return trained, num_examples, metrics
        with phase("adjust"):
            sent, report = adjust_reply(start, trained, received, self.device, self.trainable)
        if report is not None:
            metrics[REPORT_KEY] = report
        return sent, num_examples, metrics

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """As the inner client does, with ``client-id`` added where it was given."""
        loss, num_examples, metrics = self.client.evaluate(parameters, config)
        return loss, num_examples, self._named(metrics)

    def to_client(self) -> Client:
        """Return the client for ``client_fn``; it can do what the inner client can do.

        Flower asks a class which of its methods are there, and asks another client (or the
        strategy) for the initial parameters where ``get_parameters`` is not.
        """
        optional = ("get_properties", "get_parameters", "fit", "evaluate")
        missing = {name: getattr(NumPyClient, name) for name in optional if not can(self, name)}
        if self.client_id is not None:
            missing.pop("get_properties", None)
        faithful = copy.copy(self)
        faithful.__class__ = type(type(self).__name__, (type(self),), missing)
        return NumPyClient.to_client(faithful)

    def _named(self, metrics: dict[str, Scalar]) -> dict[str, Scalar]:
        """Add the client id, where it was given."""
        return metrics if self.client_id is None else {**metrics, IDENTITY_KEY: self.client_id}

    def _with_loss(
        self, metrics: Mapping[str, Scalar], received: NDArrays, config: dict[str, Scalar]
    ) -> dict[str, Scalar]:
        """Add ℓ_k under the key that FedPW reads, where it is not there yet."""
        if self.loss_key in metrics:
            return {**metrics, LOSS_KEY: metrics[self.loss_key]}
        if self.loss_source == "evaluate":
            loss, _, _ = self.client.evaluate([array.copy() for array in received], config)
            return {**metrics, self.loss_key: float(loss), LOSS_KEY: float(loss)}
        raise ValueError(
            f"fit of {type(self.client).__name__} reports {sorted(metrics) or 'no metrics'}, not "
            f"its training loss {self.loss_key!r}, by which FedPW weights clients. Return it from "
            f'fit:\n    return parameters, num_examples, {{"{self.loss_key}": mean_loss}}\n'
            'or name the metric you have: FedPWClient(client, loss_key="..."),\n'
            'or let evaluate give it: FedPWClient(client, loss_source="evaluate")'
        )


def can(client: NumPyClient, method: str) -> bool:
    """Return True where a client, or the inner client of a wrapped one, has a method of its own."""
    own = getattr(type(client), method)
    if isinstance(client, FedPWClient) and own is getattr(FedPWClient, method):
        return can(client.client, method)
    return own is not getattr(NumPyClient, method)


def checked_triple(result: Any, must: str) -> tuple[Any, Any, Any]:
    """Return what a client's method gave back; TypeError where it is not what it must be."""
    if not (isinstance(result, tuple | list) and len(result) == 3):
        raise TypeError(f"{must}, got {type(result).__name__}")
    first, second, third = result
    return first, second, third


def _checked_fit(result: Any) -> tuple[NDArrays, int, dict[str, Scalar]]:
    must = "fit of the inner client must return"
    triple = f"{must} (parameters, num_examples, metrics)"
    trained, num_examples, metrics = checked_triple(result, triple)
    if not isinstance(trained, list | tuple) or not isinstance(metrics, dict):
        types = ", ".join(type(part).__name__ for part in result)
        raise TypeError(f"{must} a list of arrays, an int and a dict, got {types}")
    return [np.asarray(array) for array in trained], num_examples, metrics


def _checked_indices(trainable: Sequence[int] | None) -> tuple[int, ...] | None:
    if trainable is None:
        return None
    indices = tuple(trainable)
    if not indices or not all(type(index) is int and index >= 0 for index in indices):
        raise TypeError(
            "trainable must hold the indices of the trainable arrays in the list of parameters, "
            f"counted from 0, got {trainable!r}"
        )
    return tuple(sorted(set(indices)))
