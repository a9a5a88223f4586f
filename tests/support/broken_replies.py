"""Every way in which a training reply can be broken, each built from a good one.

Each kind is a function from a good reply to what arrives instead of it: one reply or several.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from support.records import array_record, ndarrays
from support.small_model import stray

Break = Callable[[Message, Message], list[Message]]


@dataclass(frozen=True)
class BrokenReply:
    """`arrives(message, good_reply)` comes instead of the good reply; `reason` is in the log."""

    arrives: Break
    reason: str
    failed: bool = False


STRANGER = 999
WEIGHT, MEAN, COUNTER = "body.weight", "norm.running_mean", "norm.num_batches_tracked"


def npy(header: str, body: bytes, shape: tuple[int, ...], dtype: str = "float32") -> Array:
    """An Array whose npy payload carries any header."""
    text = header.encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body
    return Array(dtype=dtype, shape=shape, stype="numpy.ndarray", data=data)


def _with(reply: Message, message: Message, **records: Any) -> list[Message]:
    content = RecordDict({**reply.content, **records})
    return [Message(content, reply_to=message)]


def _edited(edit: Callable[[dict[str, np.ndarray]], None]) -> Break:
    def arrives(message: Message, good: Message) -> list[Message]:
        model = {name: array.copy() for name, array in ndarrays(good.content["arrays"]).items()}
        edit(model)
        return _with(good, message, arrays=array_record(model))

    return arrives


def _payload(change: Callable[[Array], Array]) -> Break:
    def arrives(message: Message, good: Message) -> list[Message]:
        arrays = dict(good.content["arrays"])
        arrays[WEIGHT] = change(arrays[WEIGHT])
        return _with(good, message, arrays=ArrayRecord(arrays))

    return arrives


def _metrics(**changes: Any) -> Break:
    def arrives(message: Message, good: Message) -> list[Message]:
        values = {**good.content["metrics"], **changes}
        kept = {key: value for key, value in values.items() if value is not None}
        return _with(good, message, metrics=MetricRecord(kept))

    return arrives


def _identity(value: Any) -> Break:
    def arrives(message: Message, good: Message) -> list[Message]:
        return _with(good, message, identity=ConfigRecord({"client-id": value}))

    return arrives


def _without(*records: str) -> Break:
    def arrives(message: Message, good: Message) -> list[Message]:
        content = {name: value for name, value in good.content.items() if name not in records}
        return [Message(RecordDict(content), reply_to=message)]

    return arrives


def _twice(record: str) -> Break:
    def arrives(message: Message, good: Message) -> list[Message]:
        return _with(good, message, **{f"{record}-again": good.content[record].copy()})

    return arrives


def _changed(name: str, change: Callable[[np.ndarray], Any]) -> Break:
    """One array of the model, made into something else."""

    def edit(model: dict[str, np.ndarray]) -> None:
        model[name] = np.asarray(change(model[name]))

    return _edited(edit)


def _entry(name: str, place: tuple[int, ...], value: float) -> Break:
    return _edited(lambda model: model[name].__setitem__(place, value))


def _bytes(change: Callable[[bytes], bytes]) -> Break:
    """Another payload under the same description."""
    return _payload(lambda array: Array(array.dtype, array.shape, array.stype, change(array.data)))


def _pickled_objects(array: Array) -> Array:
    body = pickle.dumps([print] * 24)
    header = "{'descr': '|O', 'fortran_order': False, 'shape': (6, 4), }"
    return npy(header, body, (6, 4), dtype="object")


def _error(error: Error) -> Break:
    return lambda message, good: [Message(error, reply_to=message)]


def _told_apart(**entries: Any) -> Break:
    """As `numpy_client_app` sends what no MetricRecord takes."""

    def arrives(message: Message, good: Message) -> list[Message]:
        metrics = {k: v for k, v in good.content["metrics"].items() if k not in entries}
        others = {"metrics": MetricRecord(metrics), "other-metrics": ConfigRecord(entries)}
        return _with(good, message, **others)

    return arrives


def _in_another_order(message: Message, good: Message) -> list[Message]:
    names, arrays = list(good.content["arrays"]), list(good.content["arrays"].values())
    turned = dict(zip(names, reversed(arrays), strict=True))
    return _with(good, message, arrays=ArrayRecord(turned))


def _pickled_tensors(message: Message, good: Message) -> list[Message]:
    tensors = {
        name: Array(array.dtype, array.shape, "torch.tensor", pickle.dumps(array.data))
        for name, array in good.content["arrays"].items()
    }
    return _with(good, message, arrays=ArrayRecord(tensors))


_OUT_OF_MEMORY = _error(Error(2, "RuntimeError: out of memory"))
_MISSING = _edited(lambda model: model.__delitem__("body.bias"))
_EXTRA = _edited(lambda model: model.update({"head.weight": np.ones(3, dtype=np.float32)}))
_OTHER_TYPE = _payload(lambda one: Array(one.dtype, one.shape, "torch.tensor", one.data))
_TURNED = _changed(WEIGHT, lambda one: one.T.copy())
_VECTOR = _changed(COUNTER, lambda one: one.reshape(1))
_WHOLE = _changed(WEIGHT, lambda one: one.astype(np.int32))
_FLOAT_COUNTER = _changed(COUNTER, lambda one: one.astype(np.float32))
_COMPLEX = _changed(WEIGHT, lambda one: one.astype(np.complex64))
_TRUNCATED = _bytes(lambda data: data[:-5])

BROKEN_REPLIES: dict[str, BrokenReply] = {
    "NaN entry": BrokenReply(_entry(WEIGHT, (2, 1), np.nan), "'body.weight'.*not finite"),
    "infinite entry": BrokenReply(_entry(WEIGHT, (2, 1), np.inf), "'body.weight'.*not finite"),
    "NaN in a buffer": BrokenReply(_entry(MEAN, (0,), np.nan), "'norm.running_mean'.*not finite"),
    "diverged entry": BrokenReply(_entry(WEIGHT, (2, 1), 1e30), "'body.weight'.*diverged"),
    "wrong shape": BrokenReply(_TURNED, r"'body.weight'.*\(4, 6\).*\(6, 4\)"),
    "wrong rank": BrokenReply(_VECTOR, r"num_batches_tracked.*\(1,\)"),
    "whole numbers": BrokenReply(_WHOLE, "'body.weight'.*int32.*float32"),
    "float counter": BrokenReply(_FLOAT_COUNTER, "num_batches_tracked.*float32.*int64"),
    "missing tensor": BrokenReply(_MISSING, "missing.*body.bias"),
    "extra tensor": BrokenReply(_EXTRA, "unknown.*head.weight"),
    "no ArrayRecord": BrokenReply(_without("arrays"), "0 ArrayRecords"),
    "two ArrayRecords": BrokenReply(_twice("arrays"), "2 ArrayRecords"),
    "no MetricRecord": BrokenReply(_without("metrics"), "0 MetricRecords"),
    "two MetricRecords": BrokenReply(_twice("metrics"), "2 MetricRecords"),
    "no records": BrokenReply(_without("arrays", "metrics"), "Records"),
    "no loss": BrokenReply(_metrics(train_loss=None), "train_loss"),
    "list as loss": BrokenReply(_metrics(train_loss=[0.5, 0.6]), "train_loss.*list"),
    "negative loss": BrokenReply(_metrics(train_loss=-0.1), "train_loss.*-0.1"),
    "NaN loss": BrokenReply(_metrics(train_loss=float("nan")), "train_loss.*nan"),
    "infinite loss": BrokenReply(_metrics(train_loss=float("inf")), "train_loss.*inf"),
    "loss no float can hold": BrokenReply(_metrics(train_loss=10**400), "train_loss"),
    "list as num-examples": BrokenReply(_metrics(**{"num-examples": [3, 4]}), "num-examples.*list"),
    "negative num-examples": BrokenReply(_metrics(**{"num-examples": -3}), "num-examples.*-3"),
    "client raised": BrokenReply(_OUT_OF_MEMORY, "RuntimeError: out of memory", failed=True),
    "error without reason": BrokenReply(_error(Error(0)), "error 0", failed=True),
    "node that was not asked": BrokenReply(lambda _, good: [stray(good, STRANGER)], "not asked"),
    "truncated payload": BrokenReply(_TRUNCATED, "'body.weight'.*91 bytes.*96"),
    "complex numbers": BrokenReply(_COMPLEX, "'body.weight'.*complex64"),
    "pickled objects": BrokenReply(_payload(_pickled_objects), "'body.weight'.*objects"),
    "unknown serialization": BrokenReply(_OTHER_TYPE, "'body.weight'.*torch.tensor"),
    "client-id is text": BrokenReply(_identity("three"), "client-id.*three"),
    "client-id is negative": BrokenReply(_identity(-1), "client-id.*-1"),
    "client-id is a bool": BrokenReply(_identity(True), "client-id.*True"),
    "client-id is a fraction": BrokenReply(_identity(1.5), "client-id.*1.5"),
    "client-id is a list": BrokenReply(_identity([1]), "client-id"),
}
"""By a name that reads like a claim's subject. More broken payloads: tests/wire."""

BROKEN_OF_NUMPY_CLIENTS: dict[str, BrokenReply] = {
    "loss as text": BrokenReply(_told_apart(train_loss="0.5"), "train_loss"),
    "loss as a truth value": BrokenReply(_told_apart(train_loss=True), "train_loss"),
    "arrays in another order": BrokenReply(_in_another_order, "'body.weight'"),
    "no arrays": BrokenReply(_edited(dict.clear), "missing.*body.weight"),
    "another library's tensors": BrokenReply(_pickled_tensors, "'body.weight'"),
}
"""What lists of parameters and free metrics make possible besides."""

IN_MESSAGES_ONLY = {
    "no ArrayRecord",
    "two ArrayRecords",
    "two MetricRecords",
    "no records",
    "list as loss",
    "loss no float can hold",
    "list as num-examples",
    "node that was not asked",
    "client-id is a list",
}
"""Kinds that Flower's legacy API cannot carry, or where they are other kinds."""

LEGACY_REASONS = {
    "missing tensor": "'body.bias'|missing.*conv.weight|norm",
    "extra tensor": "unknown.*surplus array 5",
    "no MetricRecord": "train_loss",
    "error without reason": "RuntimeError",
    "unknown serialization": "torch.tensor",
}
"""What the log says of a kind under the legacy API, where it cannot say the same."""
