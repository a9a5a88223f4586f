"""Every way in which a FitRes can be broken, each built from a good one."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from broken_replies import npy
from flwr.common import FitRes, Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from legacy_federation import NAMES

WEIGHT, MEAN, COUNTER = (
    NAMES.index(name) for name in ("body.weight", "norm.running_mean", "norm.num_batches_tracked")
)


@dataclass(frozen=True)
class BrokenResult:
    """`arrives(good_result)` comes instead of the good one; `reason` is in the log."""

    arrives: Callable[[FitRes], FitRes]
    reason: str


def _edited(edit: Callable[[list[np.ndarray]], None]) -> Callable[[FitRes], FitRes]:
    def arrives(good: FitRes) -> FitRes:
        arrays = [np.array(array) for array in parameters_to_ndarrays(good.parameters)]
        edit(arrays)
        return replace(good, parameters=ndarrays_to_parameters(arrays))

    return arrives


def _payload(change: Callable[[bytes], bytes]) -> Callable[[FitRes], FitRes]:
    def arrives(good: FitRes) -> FitRes:
        tensors = list(good.parameters.tensors)
        tensors[WEIGHT] = change(tensors[WEIGHT])
        return replace(good, parameters=replace(good.parameters, tensors=tensors))

    return arrives


def _metrics(**changes: Any) -> Callable[[FitRes], FitRes]:
    def arrives(good: FitRes) -> FitRes:
        values = {**good.metrics, **changes}
        return replace(good, metrics={k: v for k, v in values.items() if v is not None})

    return arrives


def _examples(count: Any) -> Callable[[FitRes], FitRes]:
    return lambda good: replace(good, num_examples=count)


def _entry(place: int, value: float) -> Callable[[list[np.ndarray]], None]:
    def edit(arrays: list[np.ndarray]) -> None:
        arrays[place].reshape(-1)[2] = value

    return edit


def _transposed(arrays: list[np.ndarray]) -> None:
    arrays[WEIGHT] = arrays[WEIGHT].T.copy()


def _counter_of_rank_one(arrays: list[np.ndarray]) -> None:
    arrays[COUNTER] = arrays[COUNTER].reshape(1)


def _whole_numbers(arrays: list[np.ndarray]) -> None:
    arrays[WEIGHT] = arrays[WEIGHT].astype(np.int32)


def _float_counter(arrays: list[np.ndarray]) -> None:
    arrays[COUNTER] = arrays[COUNTER].astype(np.float32)


def _one_too_few(arrays: list[np.ndarray]) -> None:
    del arrays[-1]


def _one_too_many(arrays: list[np.ndarray]) -> None:
    arrays.append(np.ones(3, dtype=np.float32))


def _none(arrays: list[np.ndarray]) -> None:
    arrays.clear()


def _in_another_order(arrays: list[np.ndarray]) -> None:
    arrays.reverse()


def _complex(arrays: list[np.ndarray]) -> None:
    arrays[WEIGHT] = arrays[WEIGHT].astype(np.complex64)


def _text(arrays: list[np.ndarray]) -> None:
    arrays[WEIGHT] = np.full((6, 4), "loss")


def _pickled_objects(data: bytes) -> bytes:
    header = "{'descr': '|O', 'fortran_order': False, 'shape': (6, 4), }"
    return npy(header, pickle.dumps([print] * 24), (6, 4), dtype="object").data


def _of_another_type(good: FitRes) -> FitRes:
    return replace(good, parameters=Parameters(good.parameters.tensors, "torch.tensor"))


def _saved_by_another_library(good: FitRes) -> FitRes:
    tensors = [pickle.dumps(tensor) for tensor in good.parameters.tensors]
    return replace(good, parameters=Parameters(tensors, "torch.tensor"))


BROKEN_RESULTS: dict[str, BrokenResult] = {
    "NaN entry": BrokenResult(_edited(_entry(WEIGHT, np.nan)), "'body.weight'.*not finite"),
    "infinite entry": BrokenResult(_edited(_entry(WEIGHT, np.inf)), "'body.weight'.*not finite"),
    "NaN in a buffer": BrokenResult(_edited(_entry(MEAN, np.nan)), "running_mean'.*not finite"),
    "diverged entry": BrokenResult(_edited(_entry(WEIGHT, 1e30)), "'body.weight'.*diverged"),
    "wrong shape": BrokenResult(_edited(_transposed), r"'body.weight'.*\(4, 6\).*\(6, 4\)"),
    "wrong rank": BrokenResult(_edited(_counter_of_rank_one), r"num_batches_tracked.*\(1,\)"),
    "whole numbers": BrokenResult(_edited(_whole_numbers), "'body.weight'.*int32.*float32"),
    "float counter": BrokenResult(_edited(_float_counter), "num_batches_tracked.*float32.*int64"),
    "an array too few": BrokenResult(_edited(_one_too_few), "missing.*num_batches_tracked"),
    "an array too many": BrokenResult(_edited(_one_too_many), "unknown.*4"),
    "no arrays": BrokenResult(_edited(_none), "missing.*body.weight"),
    "arrays in another order": BrokenResult(_edited(_in_another_order), "'body.weight'"),
    "complex numbers": BrokenResult(_edited(_complex), "'body.weight'.*complex64"),
    "text": BrokenResult(_edited(_text), "'body.weight'"),
    "truncated payload": BrokenResult(_payload(lambda data: data[:-5]), "'body.weight'.*91 bytes"),
    "trailing bytes": BrokenResult(_payload(lambda data: data + b"\0" * 4), "'body.weight'.*100"),
    "empty payload": BrokenResult(_payload(lambda data: b""), "'body.weight'"),
    "payload of noise": BrokenResult(_payload(lambda data: bytes(range(256))), "'body.weight'"),
    "pickled objects": BrokenResult(_payload(_pickled_objects), "'body.weight'"),
    "another tensor type": BrokenResult(_of_another_type, "torch.tensor"),
    "another library's tensors": BrokenResult(_saved_by_another_library, "body.weight"),
    "no loss": BrokenResult(_metrics(train_loss=None), "train_loss"),
    "loss as text": BrokenResult(_metrics(train_loss="0.5"), "train_loss"),
    "loss as a truth value": BrokenResult(_metrics(train_loss=True), "train_loss"),
    "negative loss": BrokenResult(_metrics(train_loss=-0.1), "train_loss.*-0.1"),
    "NaN loss": BrokenResult(_metrics(train_loss=float("nan")), "train_loss.*nan"),
    "infinite loss": BrokenResult(_metrics(train_loss=float("inf")), "train_loss.*inf"),
    "negative count": BrokenResult(_examples(-3), "num-examples.*-3"),
    "NaN count": BrokenResult(_examples(float("nan")), "num-examples.*nan"),
    "client-id is text": BrokenResult(_metrics(**{"client-id": "three"}), "client-id.*three"),
    "client-id is negative": BrokenResult(_metrics(**{"client-id": -1}), "client-id.*-1"),
    "client-id is a truth value": BrokenResult(_metrics(**{"client-id": True}), "client-id.*True"),
    "client-id is a fraction": BrokenResult(_metrics(**{"client-id": 1.5}), "client-id.*1.5"),
    "report nobody asked for": BrokenResult(_metrics(fedpw=b"{}"), "report"),
}
"""By a name that reads like a claim's subject."""
