"""Request and report of Parameter Adjustment on the client, as entries of a configuration.

The server asks with two entries of the configuration that is there already: `REQUEST_KEY`, a small
JSON text, and `CONSENSUS_KEY`, the consensus sets as bits, the same for every client. The
client answers with one JSON text. Everything is bytes, because Flower's mods want exactly one
configuration record and both of its APIs carry bytes. Arrays are named by their place in the
model, because lists of parameters have no names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fedpw_flwr.wire.packing import UPLOAD_DTYPES

__all__ = [
    "CONSENSUS_KEY",
    "HIDES_UPDATES",
    "NEEDS_DENSE",
    "REPORT_KEY",
    "REQUEST_KEY",
    "AdjustmentReport",
    "AdjustmentRequest",
    "Upload",
    "consensus_members",
    "pack_consensus",
]

REQUEST_KEY, CONSENSUS_KEY = "fedpw", "fedpw-consensus"
"""Entries of the configuration by which the server asks for an adjustment."""

REPORT_KEY = "fedpw"
"""Entry by which a client reports what it did (legacy API: of the metrics)."""

NEEDS_DENSE = "needs the arrays of the update, but the server asks for packed ones"
HIDES_UPDATES = "hides the individual updates, by which FedPW weights clients"
"""Words by which the server knows that a client failed for its mods, whatever carried them."""

Upload = Literal["dense", "packed"]

_VERSION = 1


@dataclass(frozen=True)
class AdjustmentRequest:
    """What the server asks one client to do to its update.

    Attributes
    ----------
    rate : float
        Drop rate r_k, in [0, 1]; 0 in the first round.
    consensus_round : int | None
        The round in which C and f were measured; None where nothing is to be rescaled.
    factors : Mapping[int, float]
        f by place of the array, for the arrays that are rescaled.
    upload : Upload
        "dense": w − Δ̃_k as arrays. "packed": bit mask and kept values.
    upload_dtype : str
        Type of packed values.
    keep_sign : bool
        Whether entries that would become negative are not rescaled, and rounded towards 0, in
        arrays without a negative entry.
    """

    rate: float
    consensus_round: int | None = None
    factors: Mapping[int, float] = field(default_factory=dict)
    upload: Upload = "dense"
    upload_dtype: str = "float32"
    keep_sign: bool = True

    def encode(self) -> bytes:
        """Return the request as the bytes of `REQUEST_KEY`."""
        return _encode(
            {
                "rate": self.rate,
                "consensus-round": self.consensus_round,
                "factors": {str(place): factor for place, factor in self.factors.items()},
                "upload": self.upload,
                "upload-dtype": self.upload_dtype,
                "keep-sign": self.keep_sign,
            }
        )

    @classmethod
    def decode(cls, data: object) -> AdjustmentRequest:
        """Read a request.

        Raises
        ------
        ValueError
            If the bytes are no request, or one of another version.
        """
        what = "the server's FedPW request"
        entries = _decode(data, what)
        factors = _entry(entries, "factors", what)
        upload, dtype = _entry(entries, "upload", what), _entry(entries, "upload-dtype", what)
        if upload not in get_args(Upload) or dtype not in tuple(UPLOAD_DTYPES):
            raise ValueError(f"{what} asks for the upload {upload!r} in {dtype!r}")
        if not isinstance(factors, dict) or not all(_is_place(place) for place in factors):
            raise ValueError(f"{what} has no factors by place: {factors!r}")
        return cls(
            rate=_rate(entries, what),
            consensus_round=_round(entries, what),
            factors={int(place): _number(factors, place, what) for place in factors},
            upload=upload,
            upload_dtype=dtype,
            keep_sign=_switch(entries, "keep-sign", what),
        )


@dataclass(frozen=True)
class AdjustmentReport:
    """What a client says it did to its update.

    Attributes
    ----------
    rate : float
        The drop rate it masked with.
    consensus_round : int | None
        The round of the consensus it rescaled with.
    discarded : tuple[float, ...]
        m_k of every array, by place; 0 where nothing was masked.
    packed : tuple[int, ...]
        Places of the arrays that travel packed.
    trainable : tuple[int, ...] | None
        Places of the trainable arrays, where the client was told.
    norms : tuple[float, ...]
        ‖Δ̃_k‖ of every adjusted array, by place; 0 for the others. Empty where nothing was adjusted.
    """

    rate: float
    consensus_round: int | None
    discarded: tuple[float, ...]
    packed: tuple[int, ...] = ()
    trainable: tuple[int, ...] | None = None
    norms: tuple[float, ...] = ()

    def encode(self) -> bytes:
        """Return the report as the bytes of `REPORT_KEY`."""
        return _encode(
            {
                "rate": self.rate,
                "consensus-round": self.consensus_round,
                "discarded": list(self.discarded),
                "packed": list(self.packed),
                "norms": list(self.norms),
                "trainable": None if self.trainable is None else list(self.trainable),
            }
        )

    @classmethod
    def decode(cls, data: object, arrays: int) -> AdjustmentReport:
        """Read the report of a client that was sent a model of this many arrays.

        Raises
        ------
        ValueError
            If the bytes are no report on such a model, or one of another version.
        """
        what = "its FedPW report"
        entries = _decode(data, what)
        magnitudes = _magnitudes(entries, "discarded", "discarded magnitude", arrays, what)
        norms: tuple[float, ...] = ()
        if _entry(entries, "norms", what) != []:
            norms = _magnitudes(entries, "norms", "norm", arrays, what)
        trainable = _entry(entries, "trainable", what)
        return cls(
            rate=_rate(entries, what),
            consensus_round=_round(entries, what),
            discarded=magnitudes,
            norms=norms,
            packed=_places(_entry(entries, "packed", what), arrays, what),
            trainable=None if trainable is None else _sorted_places(trainable, arrays, what),
        )


def pack_consensus(members: Sequence[Tensor]) -> bytes:
    """Turn consensus sets (bool, shape (n,), on the CPU) into bits, each set in whole bytes."""
    return b"".join(np.packbits(chosen.numpy()).tobytes() for chosen in members)


def consensus_members(
    request: AdjustmentRequest, bits: object, sizes: Sequence[int]
) -> dict[int, Tensor]:
    """Read the consensus sets of a request.

    Parameters
    ----------
    request : AdjustmentRequest
        Says which arrays have one.
    bits : object
        The bytes of `CONSENSUS_KEY`, or whatever stands in their place.
    sizes : Sequence[int]
        Entries of every array of the model.

    Returns
    -------
    dict[int, Tensor]
        Membership of C by place: bool, shape (n,).

    Raises
    ------
    ValueError
        If the bits are not those of a model of these sizes.
    """
    places = sorted(request.factors)
    if places and places[-1] >= len(sizes):
        raise ValueError(
            f"the server rescales array {places[-1]}, but the model has {len(sizes)} arrays"
        )
    expected = sum((sizes[place] + 7) // 8 for place in places)
    if not places:
        return {}
    if not isinstance(bits, bytes) or len(bits) != expected:
        size = len(bits) if isinstance(bits, bytes) else 0
        raise ValueError(f"the server's consensus sets take {expected} bytes, {size} came")
    members, offset = {}, 0
    for place in places:
        size = (sizes[place] + 7) // 8
        packed = np.frombuffer(bits, dtype=np.uint8, count=size, offset=offset)
        unpacked = np.unpackbits(packed, count=sizes[place]).view(np.bool_)
        members[place] = torch.from_numpy(unpacked)
        offset += size
    return members


def _encode(entries: Mapping[str, Any]) -> bytes:
    return json.dumps({"version": _VERSION, **entries}, allow_nan=False).encode()


def _decode(data: object, what: str) -> Mapping[str, Any]:
    if not isinstance(data, bytes):
        raise ValueError(f"{what} is {type(data).__name__}, not bytes")
    try:
        entries = json.loads(data, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} cannot be read: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{what} is no JSON object")
    if entries.get("version") != _VERSION:
        raise ValueError(
            f"{what} has the version {entries.get('version')!r}, this fedpw_flwr speaks "
            f"{_VERSION}: install the same version on server and clients"
        )
    return entries


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("an entry is there twice")
    return entries


def _is_place(text: str) -> bool:
    return text.isdecimal() and text.isascii() and len(text) < 10


def _entry(entries: Mapping[str, Any], key: str, what: str) -> Any:
    if key not in entries:
        raise ValueError(f"{what} lacks {key!r}")
    return entries[key]


def _number(entries: Mapping[Any, Any], key: Any, what: str) -> float:
    value = entries.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise ValueError(f"{what} has {value!r} for {key!r}, not a finite number")
    return float(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _rate(entries: Mapping[str, Any], what: str) -> float:
    rate = _number(entries, "rate", what)
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"{what} has the drop rate {rate}, outside [0, 1]")
    return rate


def _switch(entries: Mapping[str, Any], key: str, what: str) -> bool:
    """Read true or false; true where the entry is missing, as it is from earlier versions."""
    value = entries.get(key, True)
    if not isinstance(value, bool):
        raise ValueError(f"{what} has {value!r} for {key!r}, not true or false")
    return value


def _round(entries: Mapping[str, Any], what: str) -> int | None:
    number = _entry(entries, "consensus-round", what)
    if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
        raise ValueError(f"{what} has the consensus round {number!r}")
    return number


def _magnitudes(
    entries: Mapping[str, Any], key: str, name: str, arrays: int, what: str
) -> tuple[float, ...]:
    """Read one non-negative number for each array."""
    listed = _entry(entries, key, what)
    if not isinstance(listed, list) or len(listed) != arrays:
        raise ValueError(f"{what} gives no {name} for each of {arrays} arrays")
    by_place = dict(enumerate(listed))
    magnitudes = tuple(_number(by_place, place, what) for place in range(arrays))
    if any(magnitude < 0 for magnitude in magnitudes):
        raise ValueError(f"{what} has a negative {name}")
    return magnitudes


def _sorted_places(places: object, arrays: int, what: str) -> tuple[int, ...]:
    return tuple(sorted(set(_places(places, arrays, what))))


def _places(places: object, arrays: int, what: str) -> tuple[int, ...]:
    if not isinstance(places, list) or not all(
        isinstance(place, int) and not isinstance(place, bool) and 0 <= place < arrays
        for place in places
    ):
        raise ValueError(f"{what} names arrays {places!r} of a model of {arrays}")
    return tuple(places)
