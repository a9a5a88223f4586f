"""What a message asks of a client, and whether Flower's mods in front can take the answer."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.client import mod as legacy
from flwr.clientapp import mod as message

from fedpw_flwr.wire.adjustment import (
    CONSENSUS_KEY,
    HIDES_UPDATES,
    NEEDS_DENSE,
    REQUEST_KEY,
    AdjustmentRequest,
)

_LEGACY_RECORDS = ("fitins.", "evaluateins.", "getparametersins.", "getpropertiesins.")

_NEED_DENSE = {
    mod.__code__: name
    for api in (message, legacy)
    for name, mod in (
        ("fixedclipping_mod", api.fixedclipping_mod),
        ("adaptiveclipping_mod", api.adaptiveclipping_mod),
        ("LocalDpMod", api.LocalDpMod.__call__),
    )
}
_HIDE_UPDATES = {legacy.secagg_mod.__code__, legacy.secaggplus_mod.__code__}


@dataclass(frozen=True)
class ReceivedRequest:
    """The server's request as it came: what to do, and the bits of the consensus sets."""

    request: AdjustmentRequest
    consensus: object

    @property
    def is_first(self) -> bool:
        """Whether no round was aggregated yet: then a client may keep arrays to itself."""
        return self.request.rate == 0 and self.request.consensus_round is None


def take_request(config: MutableMapping[str, Any]) -> ReceivedRequest | None:
    """Take FedPW's entries out of a configuration; None where there is nothing to do.

    So it is, too, inside `LocalDpMod`: it noises the arrays, and what FedPW reports beside them
    would be told as it is. Such an update is sent as trained, and the server adjusts it. ValueError
    if the request cannot be read, or a mod in front hides the individual updates, or needs the
    arrays of an update that will be packed.
    """
    asked = REQUEST_KEY in config
    data, consensus = config.pop(REQUEST_KEY, None), config.pop(CONSENSUS_KEY, None)
    if not asked:
        return None
    received = ReceivedRequest(AdjustmentRequest.decode(data), consensus)
    inside = _mods_in_front()
    if inside and received.request.upload == "packed":
        raise ValueError(f'{inside[0]} {NEEDS_DENSE}: use FedPW(upload="dense") with it')
    return None if "LocalDpMod" in inside else received


def _mods_in_front() -> list[str]:
    """Name the mods that need arrays and get what the caller returns, the nearest first.

    A mod knows nothing of the others, but those in front of it are waiting on the stack.
    """
    names = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _HIDE_UPDATES:
            raise ValueError(
                f"secagg_mod or secaggplus_mod {HIDES_UPDATES}: use FedPW without secure "
                "aggregation, and take the mod out of every client's ClientApp(mods=[...])"
            )
        if frame.f_code in _NEED_DENSE:
            names.append(_NEED_DENSE[frame.f_code])
        frame = frame.f_back
    return names


def only_array_record(content: RecordDict) -> ArrayRecord:
    """Return the one ArrayRecord of a message; ValueError if it has not one, or is a legacy one."""
    refuse_legacy(content)
    records = content.array_records
    if len(records) != 1:
        raise ValueError(
            f"the message holds {len(records)} ArrayRecords {list(records)}; FedPW works on one "
            "model"
        )
    return next(iter(records.values()))


def only_config_record(content: RecordDict) -> ConfigRecord:
    """Return the ConfigRecord of a message, an empty one where there is none; it holds one."""
    records = content.config_records
    if len(records) > 1:
        raise ValueError(f"the message holds the ConfigRecords {list(records)}; FedPW reads one")
    return next(iter(records.values()), ConfigRecord())


def refuse_legacy(content: RecordDict) -> None:
    """Refuse a message of a legacy ServerApp, which no ClientApp function can answer."""
    if any(name.startswith(_LEGACY_RECORDS) for name in content):
        raise ValueError(
            "the server runs a legacy strategy (flwr.server.strategy), which talks to NumPyClients "
            "only: either give it ClientApp(client_fn=...) with FedPWClient(client).to_client(), "
            "or run fedpw_flwr.FedPW in a ServerApp with @app.main()"
        )
