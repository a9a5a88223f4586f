"""FedPW for an existing ClientApp: one entry in its list of mods."""

from __future__ import annotations

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from flwr.app.message_type import MessageType
from flwr.clientapp.typing import ClientAppCallable

from fedpw_flwr.client.masking import adjust_reply
from fedpw_flwr.client.request import (
    only_array_record,
    only_config_record,
    refuse_legacy,
    take_request,
)
from fedpw_flwr.device import available_device
from fedpw_flwr.wire.adjustment import REPORT_KEY, REQUEST_KEY
from fedpw_flwr.wire.arrays import ArrayTensors


class FedPWMod:
    """A ClientApp mod that adjusts the update of a train function as FedPW's server asks.

    Messages of other types, and those in which the server asks for nothing, pass untouched. The
    train function sees the configuration without FedPW's entries.

    Order: FedPW has to see the trained update, and what clips or adds noise has to see FedPW's, so
    it stands *last* in the list: ``mods=[fixedclipping_mod, fedpw_mod]``. Packed updates cannot
    pass through mods that need arrays (clipping, local DP); that is an error before training.

    Parameters
    ----------
    device : str | torch.device | None (default: None)
        Where masking and rescaling run; None takes CUDA when there is one, when the first message
        comes.

    Examples
    --------
    >>> app = ClientApp(mods=[fedpw_mod])
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        self._device = device if device is None else available_device(device)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Train, then adjust the update.

        Raises
        ------
        ValueError
            If the request cannot be read or carried out, a mod in front of this one needs what is
            not sent, or the server runs a legacy strategy.
        """
        if message.metadata.message_type.split(".")[0] != MessageType.TRAIN:
            return call_next(message, context)
        refuse_legacy(message.content)
        if not any(REQUEST_KEY in record for record in message.content.config_records.values()):
            return call_next(message, context)
        # Training may empty or refill the record it was sent; its arrays stay as they are.
        global_arrays = ArrayRecord(dict(only_array_record(message.content)))
        received = take_request(only_config_record(message.content))
        if received is None:
            return call_next(message, context)

        reply = call_next(message, context)
        if reply.has_error():
            return reply
        records = list(reply.content.array_records.items())
        if len(records) != 1:
            # What is no such model goes as it is: the server sees whether all clients do so.
            return reply
        [(record, trained)] = records
        names = [key for key in global_arrays if key in trained]
        complete = len(names) == len(global_arrays) or received.is_first
        if len(names) < len(trained) or not names or not complete:
            return reply
        start, end = ArrayTensors(global_arrays), ArrayTensors(trained)
        sent, report = adjust_reply(
            [start.ndarray(key) for key in names],
            [end.ndarray(key) for key in names],
            received,
            available_device(self._device),
        )
        if report is not None:
            reply.content[record] = ArrayRecord(
                {key: Array(array) for key, array in zip(names, sent, strict=True)}
            )
            reply.content[REPORT_KEY] = ConfigRecord({REPORT_KEY: report})
        return reply


fedpw_mod = FedPWMod()
"""`FedPWMod` on CUDA when there is one: ``ClientApp(mods=[fedpw_mod])``."""
