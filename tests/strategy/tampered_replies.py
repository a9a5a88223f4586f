"""Ways in which an adjusted, packed reply can arrive other than it was sent.

Each is a function that takes a client's honest reply apart, changes something at random, and says
what the server may make of it.
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
from flwr.app import Array, ArrayRecord, ConfigRecord, ConfigRecordValues, RecordDict
from support.records import NDArrays

from fedpw_flwr.algorithm.adjustment import entry_count
from fedpw_flwr.wire.adjustment import REPORT_KEY, AdjustmentReport
from fedpw_flwr.wire.packing import pack_update, packed_size


class Fate(Enum):
    """What may become of a reply."""

    REFUSED = "it is set aside"
    UNCHANGED = "it is set aside, or counts as it was sent"
    BELIEVED = "it is set aside, or believed: a client's finite values are its own to choose"


@dataclass(frozen=True)
class Honest:
    """A client's reply as it left, and what there was before it."""

    content: RecordDict
    global_model: NDArrays
    dtype: str
    earlier: tuple[RecordDict, ...]
    chance: random.Random = field(repr=False)

    @property
    def arrays(self) -> dict[str, Array]:
        return dict(self.content.array_records["arrays"])

    @property
    def report(self) -> dict[str, Any]:
        entries = json.loads(report_bytes(self.content))
        assert isinstance(entries, dict)
        return entries

    @property
    def packed(self) -> list[str]:
        decoded = AdjustmentReport.decode(report_bytes(self.content), len(self.global_model))
        names = list(self.global_model)
        return [names[place] for place in decoded.packed]

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
    """Change one to three bytes of the payload between two places, for certain."""
    data = bytearray(array.data)
    for place in chance.sample(range(start, stop), min(chance.randint(1, 3), stop - start)):
        data[place] ^= chance.randint(1, 255)
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


def nothing(honest: Honest) -> Outcome | None:
    return honest.content, Fate.UNCHANGED


def flipped_npy_header(honest: Honest) -> Outcome | None:
    name = honest.chance.choice(list(honest.arrays))
    array = honest.arrays[name]
    changed = flipped(array, honest.chance, 0, body_start(array))
    return honest.with_arrays({name: changed}), Fate.UNCHANGED


def _flipped_part(part: Callable[[Array, int, int], tuple[int, int]], seal: bool) -> Tamper:
    """Flip bytes of a packed array; where it is sealed, its own word is all there is."""

    def tamper(honest: Honest) -> Outcome | None:
        if (found := some_packed(honest)) is None:
            return None
        name, array, mask, values = found
        start, stop = part(array, mask, values)
        if start == stop:
            return None
        changed = flipped(array, honest.chance, start, stop)
        if not seal:
            return honest.with_arrays({name: changed}), Fate.REFUSED
        kept = [
            np.unpackbits(each.numpy()[packed_size(0, 0, "float32") :][: values - mask]).sum()
            for each in (array, changed)
        ]
        fate = Fate.BELIEVED if kept[0] == kept[1] else Fate.REFUSED
        return honest.with_arrays({name: sealed(changed)}), fate

    return tamper


def _header(array: Array, mask: int, values: int) -> tuple[int, int]:
    return body_start(array), mask


def _mask(array: Array, mask: int, values: int) -> tuple[int, int]:
    return mask, values


def _values(array: Array, mask: int, values: int) -> tuple[int, int]:
    return values, len(array.data)


def empty_mask(honest: Honest) -> Outcome | None:
    """A payload that keeps nothing: an update of zeros is what it says."""
    if (found := some_packed(honest)) is None:
        return None
    name, array, mask, values = found
    start = body_start(array)
    payload = array.data[start:mask] + bytes(values - mask)
    changed = sealed(Array(np.frombuffer(payload, dtype=np.uint8)))
    return honest.with_arrays({name: changed}), Fate.BELIEVED


def flipped_dense_values(honest: Honest) -> Outcome | None:
    name = honest.chance.choice([name for name in honest.arrays if name not in honest.packed])
    array = honest.arrays[name]
    changed = flipped(array, honest.chance, body_start(array), len(array.data))
    return honest.with_arrays({name: changed}), Fate.BELIEVED


def truncated(honest: Honest) -> Outcome | None:
    name = honest.chance.choice(list(honest.arrays))
    array = honest.arrays[name]
    cut = honest.chance.randint(1, len(array.data))
    return honest.with_arrays({name: with_data(array, array.data[:-cut])}), Fate.REFUSED


def extended(honest: Honest) -> Outcome | None:
    name = honest.chance.choice(list(honest.arrays))
    array = honest.arrays[name]
    surplus = honest.chance.randbytes(honest.chance.randint(1, 20))
    return honest.with_arrays({name: with_data(array, array.data + surplus)}), Fate.REFUSED


def resized_payload(honest: Honest) -> Outcome | None:
    """A packed payload of another length, under an npy header that agrees with it."""
    if (found := some_packed(honest)) is None:
        return None
    name, array, _, _ = found
    payload = array.numpy()
    size = honest.chance.choice([n for n in range(payload.size + 9) if n != payload.size])
    resized = Array(np.resize(payload, size))
    if size >= packed_size(0, 0, "float32") and honest.chance.random() < 0.5:
        resized = sealed(resized)
    return honest.with_arrays({name: resized}), Fate.REFUSED


def swapped(honest: Honest) -> Outcome | None:
    """Two arrays change names; two dense ones of the same kind are still a client's own values."""
    first, second = honest.chance.sample(list(honest.arrays), 2)
    one, other = honest.arrays[first], honest.arrays[second]
    dense = not {first, second} & set(honest.packed)
    alike = (one.dtype, one.shape) == (other.dtype, other.shape)
    fate = Fate.BELIEVED if dense and alike else Fate.REFUSED
    return honest.with_arrays({first: other, second: one}), fate


def another_tensors_payload(honest: Honest) -> Outcome | None:
    """The payload of a tensor of the same size in two places."""
    pairs = [
        (first, second)
        for first in honest.packed
        for second in honest.packed
        if first != second and honest.global_model[first].size == honest.global_model[second].size
    ]
    if not pairs:
        return None
    first, second = honest.chance.choice(pairs)
    return honest.with_arrays({first: honest.arrays[second]}), Fate.REFUSED


def renamed(honest: Honest) -> Outcome | None:
    name = honest.chance.choice(list(honest.arrays))
    arrays = {f"{key}." if key == name else key: array for key, array in honest.arrays.items()}
    return RecordDict({**honest.content, "arrays": ArrayRecord(arrays)}), Fate.REFUSED


def dense_in_place_of_packed(honest: Honest) -> Outcome | None:
    if (found := some_packed(honest)) is None:
        return None
    name = found[0]
    return honest.with_arrays({name: Array(honest.global_model[name])}), Fate.REFUSED


def dense_and_said_so(honest: Honest) -> Outcome | None:
    if (found := some_packed(honest)) is None:
        return None
    name, report = found[0], honest.report
    report["packed"].remove(list(honest.global_model).index(name))
    content = honest.with_arrays({name: Array(honest.global_model[name])})
    content[REPORT_KEY] = honest.with_report(report)[REPORT_KEY]
    return content, Fate.BELIEVED


def lying_about_the_array(honest: Honest) -> Outcome | None:
    name = honest.chance.choice(list(honest.arrays))
    array = honest.arrays[name]
    lie = honest.chance.choice(
        [
            Array("float16", array.shape, array.stype, array.data),
            Array(array.dtype, (*array.shape, 2), array.stype, array.data),
            Array(array.dtype, array.shape, "torch.tensor", array.data),
            Array(array.dtype, (-1,), array.stype, array.data),
        ]
    )
    return honest.with_arrays({name: lie}), Fate.REFUSED


def flipped_report(honest: Honest) -> Outcome | None:
    data = bytearray(report_bytes(honest.content))
    for _ in range(honest.chance.randint(1, 3)):
        data[honest.chance.randrange(len(data))] = honest.chance.randrange(256)
    return honest.with_report(bytes(data)), _fate_of_report(bytes(data), honest.report)


def changed_digit_of_report(honest: Honest) -> Outcome | None:
    """What flipped bytes rarely do: the report says something else, and is still JSON."""
    data = bytearray(report_bytes(honest.content))
    places = [place for place, letter in enumerate(data) if chr(letter).isdecimal()]
    data[honest.chance.choice(places)] = ord(honest.chance.choice("0123456789"))
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


def truncated_report(honest: Honest) -> Outcome | None:
    data = report_bytes(honest.content)
    return honest.with_report(data[: honest.chance.randrange(len(data))]), Fate.REFUSED


def report_of_another_round(honest: Honest) -> Outcome | None:
    reports = [report_bytes(content) for content in honest.earlier]
    others = [data for data in reports if _fate_of_report(data, honest.report) is Fate.REFUSED]
    return (honest.with_report(honest.chance.choice(others)), Fate.REFUSED) if others else None


def payload_of_another_round(honest: Honest) -> Outcome | None:
    """Stale, but an update of this tensor: its values are the client's own."""
    if (found := some_packed(honest)) is None or not honest.earlier:
        return None
    stale = honest.chance.choice(honest.earlier).array_records["arrays"][found[0]]
    return honest.with_arrays({found[0]: stale}), Fate.BELIEVED


def no_report(honest: Honest) -> Outcome | None:
    content = {name: record for name, record in honest.content.items() if name != REPORT_KEY}
    return RecordDict(content), Fate.REFUSED if honest.packed else Fate.BELIEVED


def report_of_no_kind(honest: Honest) -> Outcome | None:
    values: list[ConfigRecordValues]
    values = ["text", 3, 0.5, True, [1, 2], [], [b"report"], b"", b"{}"]
    value = honest.chance.choice(values)
    content = RecordDict({**honest.content, REPORT_KEY: ConfigRecord({REPORT_KEY: value})})
    return content, Fate.REFUSED


def packed_list_too_long(honest: Honest) -> Outcome | None:
    report = honest.report
    others = [place for place in range(len(honest.arrays)) if place not in report["packed"]]
    report["packed"].append(honest.chance.choice([*others, -1, len(honest.arrays), 10**30]))
    return honest.with_report(report), Fate.REFUSED


def packed_list_too_short(honest: Honest) -> Outcome | None:
    report = honest.report
    if not report["packed"]:
        return None
    report["packed"].remove(honest.chance.choice(report["packed"]))
    return honest.with_report(report), Fate.REFUSED


def packed_list_repeated(honest: Honest) -> Outcome | None:
    report = honest.report
    report["packed"] = 2 * report["packed"]
    return honest.with_report(report), Fate.UNCHANGED


def more_kept_than_the_rate_leaves(honest: Honest) -> Outcome | None:
    if (found := some_packed(honest)) is None:
        return None
    name, rate = found[0], honest.report["rate"]
    entries = honest.global_model[name].size
    leaves = entries - entry_count(entries, rate)
    if leaves == entries:
        return None
    update = torch.zeros(entries)
    update[: honest.chance.randint(leaves + 1, entries)] = 1e-3
    return honest.with_arrays({name: repacked(honest, name, update)}), Fate.REFUSED


def repacked(honest: Honest, name: str, update: torch.Tensor) -> Array:
    return Array(pack_update(update, honest.dtype, list(honest.global_model).index(name)))


def _some_entry(value: float) -> Tamper:
    def tamper(honest: Honest) -> Outcome | None:
        if (found := some_packed(honest)) is None:
            return None
        update = torch.zeros(honest.global_model[found[0]].size)
        update[honest.chance.randrange(update.numel())] = value
        return honest.with_arrays({found[0]: repacked(honest, found[0], update)}), Fate.REFUSED

    return tamper


def _discarded(value: Any, fate: Fate) -> Tamper:
    def tamper(honest: Honest) -> Outcome | None:
        report = honest.report
        places = range(len(report["discarded"]))
        for place in honest.chance.sample(places, honest.chance.randint(1, len(places))):
            report["discarded"][place] = value
        return honest.with_report(report), fate

    return tamper


def discarded_for_another_model(honest: Honest) -> Outcome | None:
    report = honest.report
    report["discarded"] = honest.chance.choice([[], report["discarded"][1:], [0.0] * 99])
    return honest.with_report(report), Fate.REFUSED


def _told(key: str, *values: Any) -> Tamper:
    def tamper(honest: Honest) -> Outcome | None:
        report = honest.report
        others = [value for value in values if value != report[key]]
        report[key] = honest.chance.choice(others)
        return honest.with_report(report), Fate.REFUSED

    return tamper


TAMPERED: dict[str, Tamper] = {
    "nothing": nothing,
    "npy header, bytes flipped": flipped_npy_header,
    "packed header, bytes flipped": _flipped_part(_header, seal=False),
    "packed header, bytes flipped and sealed": _flipped_part(_header, seal=True),
    "mask, bytes flipped": _flipped_part(_mask, seal=False),
    "mask, bytes flipped and sealed": _flipped_part(_mask, seal=True),
    "mask that keeps nothing": empty_mask,
    "packed values, bytes flipped": _flipped_part(_values, seal=False),
    "packed values, bytes flipped and sealed": _flipped_part(_values, seal=True),
    "dense values, bytes flipped": flipped_dense_values,
    "array truncated": truncated,
    "array extended": extended,
    "packed payload of another length": resized_payload,
    "two arrays swapped": swapped,
    "another tensor's payload": another_tensors_payload,
    "array renamed": renamed,
    "dense where the report says packed": dense_in_place_of_packed,
    "dense where the report says so": dense_and_said_so,
    "array that claims another type": lying_about_the_array,
    "report, bytes flipped": flipped_report,
    "report, a digit changed": changed_digit_of_report,
    "report truncated": truncated_report,
    "report of another round": report_of_another_round,
    "payload of another round": payload_of_another_round,
    "report missing": no_report,
    "report of another kind": report_of_no_kind,
    "packed list too long": packed_list_too_long,
    "packed list too short": packed_list_too_short,
    "packed list repeated": packed_list_repeated,
    "more kept than the rate leaves": more_kept_than_the_rate_leaves,
    "packed NaN": _some_entry(float("nan")),
    "packed infinity": _some_entry(float("inf")),
    "packed minus infinity": _some_entry(-float("inf")),
    "packed value that has diverged": _some_entry(1e30),
    "negative discarded magnitude": _discarded(-1e-9, Fate.REFUSED),
    "discarded magnitude that is NaN": _discarded(float("nan"), Fate.REFUSED),
    "discarded magnitude that is infinite": _discarded(float("inf"), Fate.REFUSED),
    "discarded magnitude no float can hold": _discarded(10**400, Fate.REFUSED),
    "huge discarded magnitude": _discarded(1.7e308, Fate.BELIEVED),
    "discarded magnitude that is text": _discarded("0.1", Fate.REFUSED),
    "discarded magnitudes of another model": discarded_for_another_model,
    "another rate": _told("rate", 0.0, 0.25, 0.999, 1.0, -0.5, 2.0, None, "0.5", 10**400),
    "another consensus round": _told("consensus-round", None, 1, 77, -1, 2.5, True, "2"),
    "another version": _told("version", 0, 2, None, "1"),
}
"""By a name that reads like what happened to the reply."""
