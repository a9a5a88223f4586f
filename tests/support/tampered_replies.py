"""Ways in which an adjusted, packed reply can arrive other than it was sent.

Each takes a client's honest reply, changes something at random, and returns what the server may
make of it.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedpw_flwr.algorithm.adjustment import entry_count
from fedpw_flwr.wire.adjustment import REPORT_KEY, AdjustmentReport
from fedpw_flwr.wire.packing import pack_update, packed_size
from support.records import NDArrays


class Fate(Enum):
    """What may become of a reply."""

    REFUSED = "it is set aside"
    UNCHANGED = "it is set aside, or counts as it was sent"
    BELIEVED = "it is set aside, or believed: a client's finite values are its own to choose"


@dataclass(frozen=True)
class Honest:
    """A client's reply as it left."""

    content: RecordDict
    global_model: NDArrays
    dtype: str
    chance: random.Random = field(repr=False)

    @property
    def arrays(self) -> dict[str, Array]:
        return dict(self.content.array_records["arrays"])

    @property
    def report(self) -> dict[str, Any]:
        entries: dict[str, Any] = json.loads(report_bytes(self.content))
        return entries

    @property
    def packed(self) -> list[str]:
        decoded = AdjustmentReport.decode(report_bytes(self.content), len(self.global_model))
        names = list(self.global_model)
        return [names[index] for index in decoded.packed]

    def with_arrays(self, changes: Mapping[str, Array]) -> RecordDict:
        return RecordDict({**self.content, "arrays": ArrayRecord({**self.arrays, **changes})})

    def with_report(self, report: bytes | dict[str, Any]) -> RecordDict:
        data = report if isinstance(report, bytes) else json.dumps(report).encode()
        return RecordDict({**self.content, REPORT_KEY: ConfigRecord({REPORT_KEY: data})})


def report_bytes(content: RecordDict) -> bytes:
    data = content.config_records[REPORT_KEY][REPORT_KEY]
    assert isinstance(data, bytes)
    return data


Outcome = tuple[RecordDict, Fate]
Tamper = Callable[[Honest], Outcome | None]
"""None where there is nothing of the kind in this reply."""


def body_start(array: Array) -> int:
    """Length of the npy header."""
    return 10 + int.from_bytes(array.data[8:10], "little")


def with_data(array: Array, data: bytes) -> Array:
    return Array(array.dtype, array.shape, array.stype, data)


def flipped(array: Array, chance: random.Random, start: int, stop: int) -> Array:
    """Change one to three bytes of the payload between two indices, for certain."""
    data = bytearray(array.data)
    for index in chance.sample(range(start, stop), min(chance.randint(1, 3), stop - start)):
        data[index] ^= chance.randint(1, 255)
    return with_data(array, bytes(data))


def sealed(array: Array) -> Array:
    """The packed array with the checksum of what it holds now: a lie, and no accident."""
    payload = array.numpy().copy()
    header = packed_size(0, 0, "float32")
    checksum = zlib.crc32(payload[: header - 4].tobytes() + payload[header:].tobytes())
    payload[header - 4 : header] = np.frombuffer(struct.pack("<I", checksum), dtype=np.uint8)
    return Array(payload)


def some_packed(honest: Honest) -> tuple[str, Array, int, int] | None:
    """A packed array, where its mask begins and where its values begin."""
    if not honest.packed:
        return None
    name = honest.chance.choice(honest.packed)
    array = honest.arrays[name]
    mask = body_start(array) + packed_size(0, 0, honest.dtype)
    entries = honest.global_model[name].size
    return name, array, mask, mask + (entries + 7) // 8


def flipped_and_sealed(honest: Honest) -> Outcome | None:
    """Bytes of the header, the mask or the values flipped, and the checksum made to agree."""
    if (found := some_packed(honest)) is None:
        return None
    name, array, mask, values = found
    parts = [(body_start(array), mask), (mask, values), (values, len(array.data))]
    start, stop = honest.chance.choice([part for part in parts if part[0] < part[1]])
    changed = flipped(array, honest.chance, start, stop)
    kept = [
        np.unpackbits(each.numpy()[packed_size(0, 0, "float32") :][: values - mask]).sum()
        for each in (array, changed)
    ]
    fate = Fate.BELIEVED if kept[0] == kept[1] else Fate.REFUSED
    return honest.with_arrays({name: sealed(changed)}), fate


def flipped_dense_values(honest: Honest) -> Outcome | None:
    name = honest.chance.choice([name for name in honest.arrays if name not in honest.packed])
    array = honest.arrays[name]
    changed = flipped(array, honest.chance, body_start(array), len(array.data))
    return honest.with_arrays({name: changed}), Fate.BELIEVED


def swapped(honest: Honest) -> Outcome | None:
    """Two arrays change names; two dense ones of the same kind are still a client's own values."""
    first, second = honest.chance.sample(list(honest.arrays), 2)
    one, other = honest.arrays[first], honest.arrays[second]
    dense = not {first, second} & set(honest.packed)
    alike = (one.dtype, one.shape) == (other.dtype, other.shape)
    fate = Fate.BELIEVED if dense and alike else Fate.REFUSED
    return honest.with_arrays({first: other, second: one}), fate


def _dense(said_so: bool) -> Tamper:
    """A dense array in place of a packed one; the report says so, or does not."""

    def tamper(honest: Honest) -> Outcome | None:
        if (found := some_packed(honest)) is None:
            return None
        name, report = found[0], honest.report
        content = honest.with_arrays({name: Array(honest.global_model[name])})
        if not said_so:
            return content, Fate.REFUSED
        report["packed"].remove(list(honest.global_model).index(name))
        content[REPORT_KEY] = honest.with_report(report)[REPORT_KEY]
        return content, Fate.BELIEVED

    return tamper


def flipped_report(honest: Honest) -> Outcome | None:
    """Random bytes; or, what they rarely do, a report that says something else and is JSON."""
    data = bytearray(report_bytes(honest.content))
    if honest.chance.random() < 0.5:
        digits = [index for index, letter in enumerate(data) if chr(letter).isdecimal()]
        data[honest.chance.choice(digits)] = ord(honest.chance.choice("0123456789"))
    else:
        for _ in range(honest.chance.randint(1, 3)):
            data[honest.chance.randrange(len(data))] = honest.chance.randrange(256)
    return honest.with_report(bytes(data)), _fate_of_report(bytes(data), honest.report)


def _fate_of_report(data: bytes, honest: Mapping[str, Any]) -> Fate:
    try:
        read = json.loads(data)
        told = {key: read[key] for key in ("version", "rate", "consensus-round")}
        packed = set(read["packed"])
    except (ValueError, LookupError, TypeError):
        return Fate.REFUSED
    if packed != set(honest["packed"]) or any(honest[key] != told[key] for key in told):
        return Fate.REFUSED
    # A discarded magnitude is the client's word; which arrays are trainable is not asked here.
    return Fate.BELIEVED


def no_report(honest: Honest) -> Outcome | None:
    content = {name: record for name, record in honest.content.items() if name != REPORT_KEY}
    return RecordDict(content), Fate.REFUSED if honest.packed else Fate.BELIEVED


def another_packed_list(honest: Honest) -> Outcome | None:
    """A list that names one array too many, or one too few."""
    report = honest.report
    if report["packed"] and honest.chance.random() < 0.5:
        report["packed"].remove(honest.chance.choice(report["packed"]))
    else:
        others = [index for index in range(len(honest.arrays)) if index not in report["packed"]]
        report["packed"].append(honest.chance.choice([*others, -1, len(honest.arrays), 10**30]))
    return honest.with_report(report), Fate.REFUSED


def more_kept_than_the_rate_leaves(honest: Honest) -> Outcome | None:
    if (found := some_packed(honest)) is None:
        return None
    name, entries = found[0], honest.global_model[found[0]].size
    leaves = entries - entry_count(entries, honest.report["rate"])
    if leaves == entries:
        return None
    update = torch.zeros(entries)
    update[: honest.chance.randint(leaves + 1, entries)] = 1e-3
    return honest.with_arrays({name: repacked(honest, name, update)}), Fate.REFUSED


def repacked(honest: Honest, name: str, update: torch.Tensor) -> Array:
    return Array(pack_update(update, honest.dtype, list(honest.global_model).index(name)))


def impossible_value(honest: Honest) -> Outcome | None:
    """A packed entry that is not finite, or has diverged."""
    if (found := some_packed(honest)) is None:
        return None
    update = torch.zeros(honest.global_model[found[0]].size)
    value = honest.chance.choice([float("nan"), float("inf"), -float("inf"), 1e30])
    update[honest.chance.randrange(update.numel())] = value
    return honest.with_arrays({found[0]: repacked(honest, found[0], update)}), Fate.REFUSED


def huge_magnitudes(honest: Honest) -> Outcome | None:
    report = honest.report
    report["discarded"] = [1.7e308] * len(report["discarded"])
    return honest.with_report(report), Fate.BELIEVED


TAMPERED: dict[str, tuple[Tamper, str]] = {
    "nothing": (lambda honest: (honest.content, Fate.UNCHANGED), ""),
    "packed payload, bytes flipped and sealed": (flipped_and_sealed, "tensor '.*"),
    "dense values, bytes flipped": (flipped_dense_values, "tensor '.*"),
    "two arrays swapped": (swapped, "tensor '.*"),
    "dense where the report says packed": (
        _dense(said_so=False),
        "tensor '.*': a packed update is one row of bytes",
    ),
    "dense where the report says so": (_dense(said_so=True), ""),
    "report, bytes flipped": (flipped_report, ""),
    "report missing": (no_report, r"tensor '.*' (has the shape \(\d+,\)|is .*uint8) instead of"),
    "another packed list": (another_packed_list, ""),
    "more kept than the rate leaves": (
        more_kept_than_the_rate_leaves,
        r"tensor '.*': .*keeps \d+ of \d+.*leaves \d+",
    ),
    "packed value that is impossible": (impossible_value, "tensor '.*(not finite|diverged)"),
    "huge discarded magnitudes": (huge_magnitudes, ""),
}
"""By a name that reads like what happened to the reply, and what the log says of those refused."""
