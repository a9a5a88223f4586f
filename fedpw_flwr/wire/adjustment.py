"""What the server asks a client to do to its update, and what the client says it did.

A request is two entries of a message's configuration, a small JSON text and the consensus sets as
bits; a report is one JSON text. All are bytes, which both of Flower's APIs carry. Arrays are named
by their index in the model, because lists of parameters have no names.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fedpw_flwr.wire.packing import UPLOAD_DTYPES

REQUEST_KEY, CONSENSUS_KEY = "fedpw", "fedpw-consensus"
"""Entries of the configuration by which the server asks for an adjustment."""

REPORT_KEY = "fedpw"
"""Entry by which a client reports what it did (legacy API: of the metrics)."""

NEEDS_DENSE = "needs the arrays of the update, but the server asks for packed ones"
HIDES_UPDATES = "hides the individual updates, by which FedPW weights clients"
"""Words by which the server knows that a client failed for its mods, whatever carried them."""

Upload = Literal["dense", "packed"]
"""w − Δ̃_k as arrays, or bit masks and kept values."""

_VERSION = 1
_INDEX = re.compile("[0-9]{1,9}")


@dataclass(frozen=True)
class _Encodable:
    def encode(self) -> bytes:
        """Return a JSON text of every field under its name, with dashes, as bytes."""
        entries = {each.name.replace("_", "-"): getattr(self, each.name) for each in fields(self)}
        return json.dumps({"version": _VERSION, **entries}, allow_nan=False).encode()


@dataclass(frozen=True)
class AdjustmentRequest(_Encodable):
    """What the server asks one client to do to its update.

    `rate` is the drop rate r_k, 0 in the first round. `consensus_round` is the round in which C and
    f were measured, None where nothing is rescaled; `factors` gives f by index of the array. Where
    `keep_sign` is set, an array without a negative entry gets none: such entries are not rescaled,
    and rounded towards 0.
    """

    rate: float
    consensus_round: int | None = None
    factors: Mapping[int, float] = field(default_factory=dict)
    upload: Upload = "dense"
    upload_dtype: str = "float32"
    keep_sign: bool = True

    @classmethod
    def decode(cls, data: object) -> AdjustmentRequest:
        """Read a request; ValueError where it is none, or one of another version."""
        text = _Text(data, "the server's FedPW request")
        factors, upload, dtype = text["factors"], text["upload"], text["upload-dtype"]
        if upload not in get_args(Upload) or dtype not in tuple(UPLOAD_DTYPES):
            raise text.error(f"asks for the upload {upload!r} in {dtype!r}")
        if not isinstance(factors, dict) or not all(map(_INDEX.fullmatch, factors)):
            raise text.error(f"has no factors by index: {factors!r}")
        keep_sign = text.entries.get("keep-sign", True)  # earlier versions send none
        if not isinstance(keep_sign, bool):
            raise text.error(f"has {keep_sign!r} for 'keep-sign', not true or false")
        return cls(
            rate=text.rate(),
            consensus_round=text.consensus_round(),
            factors={int(key): text.number(key, value) for key, value in factors.items()},
            upload=upload,
            upload_dtype=dtype,
            keep_sign=keep_sign,
        )


@dataclass(frozen=True)
class AdjustmentReport(_Encodable):
    """What a client says it did to its update.

    `rate` and `consensus_round` are those of the request. `discarded` holds m_k of every array, 0
    where nothing was masked; `norms` ‖Δ̃_k‖ of every array, 0 where it was not adjusted, and is
    empty where none was. `packed` and `trainable` are indices of arrays: of those that travel
    packed, and of the trainable ones, where the client was told.
    """

    rate: float
    consensus_round: int | None
    discarded: tuple[float, ...]
    packed: tuple[int, ...] = ()
    norms: tuple[float, ...] = ()
    trainable: tuple[int, ...] | None = None

    @classmethod
    def decode(cls, data: object, arrays: int) -> AdjustmentReport:
        """Read a report on a model of so many arrays; ValueError as for a request."""
        text = _Text(data, "its FedPW report")
        discarded = text.magnitudes("discarded", "discarded magnitude", arrays)
        norms = () if text["norms"] == [] else text.magnitudes("norms", "norm", arrays)
        packed = text.indices(text["packed"], arrays)
        trainable = text["trainable"]
        if trainable is not None:
            trainable = tuple(sorted(set(text.indices(trainable, arrays))))
        return cls(text.rate(), text.consensus_round(), discarded, packed, norms, trainable)


def pack_consensus(members: Sequence[Tensor]) -> bytes:
    """Turn consensus sets (bool, shape (n,), on the CPU) into bits, each set in whole bytes."""
    return b"".join(np.packbits(chosen.numpy()).tobytes() for chosen in members)


def consensus_members(
    request: AdjustmentRequest, bits: object, sizes: Sequence[int]
) -> dict[int, Tensor]:
    """Read membership of C (bool, shape (n,)) by index of the array, of n entries each.

    ValueError if `bits`, whatever was found under `CONSENSUS_KEY`, are not those of such a model.
    """
    indices = sorted(request.factors)
    if not indices:
        return {}
    if indices[-1] >= len(sizes):
        raise ValueError(
            f"the server rescales array {indices[-1]}, but the model has {len(sizes)} arrays"
        )
    expected = sum((sizes[index] + 7) // 8 for index in indices)
    size = len(bits) if isinstance(bits, bytes) else 0
    if not isinstance(bits, bytes) or size != expected:
        raise ValueError(f"the server's consensus sets take {expected} bytes, {size} came")
    members, rest = {}, np.frombuffer(bits, dtype=np.uint8)
    for index in indices:
        unpacked = np.unpackbits(rest[: (sizes[index] + 7) // 8], count=sizes[index])
        members[index] = torch.from_numpy(unpacked.view(np.bool_))
        rest = rest[(sizes[index] + 7) // 8 :]
    return members


class _Text:
    """A JSON text that came, read entry by entry; a ValueError names it and what is wrong."""

    def __init__(self, data: object, name: str) -> None:
        self._name = name
        if not isinstance(data, bytes):
            raise self.error(f"is {type(data).__name__}, not bytes")
        try:
            self.entries = json.loads(data, object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:
            raise self.error(f"cannot be read: {error}") from error
        if not isinstance(self.entries, dict):
            raise self.error("is no JSON object")
        version = self.entries.get("version")
        if version != _VERSION:
            raise self.error(
                f"has the version {version!r}, this fedpw_flwr speaks {_VERSION}: install the same "
                "version on server and clients"
            )

    def error(self, what: str) -> ValueError:
        return ValueError(f"{self._name} {what}")

    def __getitem__(self, key: str) -> Any:
        if key not in self.entries:
            raise self.error(f"lacks {key!r}")
        return self.entries[key]

    def number(self, key: object, value: object) -> float:
        """Return the value found under a key as a finite float."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # JSON knows integers that no float can hold.
        if not is_number or not abs(value) <= sys.float_info.max:  # type: ignore[arg-type]
            raise self.error(f"has {value!r} for {key!r}, not a finite number")
        return float(value)  # type: ignore[arg-type]

    def rate(self) -> float:
        rate = self.number("rate", self.entries.get("rate"))
        if not 0.0 <= rate <= 1.0:
            raise self.error(f"has the drop rate {rate}, outside [0, 1]")
        return rate

    def consensus_round(self) -> int | None:
        number = self["consensus-round"]
        if number is not None and type(number) is not int:
            raise self.error(f"has the consensus round {number!r}")
        return number

    def magnitudes(self, key: str, name: str, arrays: int) -> tuple[float, ...]:
        """Return one number, not negative, for each array."""
        listed = self[key]
        if not isinstance(listed, list) or len(listed) != arrays:
            raise self.error(f"gives no {name} for each of {arrays} arrays")
        magnitudes = tuple(self.number(index, value) for index, value in enumerate(listed))
        if any(magnitude < 0 for magnitude in magnitudes):
            raise self.error(f"has a negative {name}")
        return magnitudes

    def indices(self, listed: object, arrays: int) -> tuple[int, ...]:
        if not isinstance(listed, list) or not all(
            type(index) is int and 0 <= index < arrays for index in listed
        ):
            raise self.error(f"names arrays {listed!r} of a model of {arrays}")
        return tuple(listed)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("an entry is there twice")
    return entries
