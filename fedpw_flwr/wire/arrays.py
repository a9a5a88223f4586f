"""Between Flower's ArrayRecord and tensors by name, without copying what is only read.

A reply's arrays stay the bytes that came from the network; a tensor is a view of them, made when
the algorithm asks for it. What a payload claims about itself is checked before it is believed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from torch import Tensor

from fedpw_flwr.algorithm.adjustment import entry_count
from fedpw_flwr.algorithm.client_step import subtract_update
from fedpw_flwr.algorithm.tensors import working_dtype
from fedpw_flwr.wire.packing import PackedUpdate

_STYPE = "numpy.ndarray"


class _Header(NamedTuple):
    """What an npy header says; the entries begin behind `size` bytes."""

    size: int
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype[Any]
    flowers_dtype: str


def decode_array(array: Array) -> npt.NDArray[Any]:
    """View a Flower Array as a read-only NumPy array; ValueError if it is not what it claims."""
    if array.stype != _STYPE:
        raise ValueError(f"serialization type {array.stype!r} instead of {_STYPE!r}")
    data = array.data
    try:
        size, shape, order, dtype, flowers_dtype = _read_header(data)
    except ValueError as error:
        raise ValueError(f"the npy header cannot be read: {error}") from error
    if dtype.hasobject:
        raise ValueError("the payload holds Python objects")
    if shape != tuple(array.shape) or flowers_dtype != array.dtype:
        raise ValueError(
            f"the payload is {dtype} {shape} but claims to be {array.dtype} {tuple(array.shape)}"
        )
    entries = math.prod(shape)
    if len(data) - size != entries * dtype.itemsize:
        raise ValueError(
            f"the payload holds {len(data) - size} bytes instead of {entries * dtype.itemsize}"
        )
    return np.frombuffer(data, dtype, entries, offset=size).reshape(shape, order=order)


def array_of_npy(data: bytes, stype: str = _STYPE) -> Array:
    """Wrap an npy payload, as Flower's legacy API carries arrays, without copying it.

    A payload that cannot be read is wrapped, too: `decode_array` says what is wrong with it.
    """
    try:
        header = _read_header(data)
    except ValueError:
        return Array(dtype="unknown", shape=(), stype=stype, data=data)
    return Array(dtype=header.flowers_dtype, shape=header.shape, stype=stype, data=data)


def _read_header(data: bytes) -> _Header:
    """Read what an npy payload says about itself; ValueError if it is not of format 1 or 2."""
    version = npy.read_magic(BytesIO(data[: npy.MAGIC_LEN]))
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"unsupported npy format version {version}")
    end = npy.MAGIC_LEN + (2 if version == (1, 0) else 4)
    end += int.from_bytes(data[npy.MAGIC_LEN : end], "little")
    return _parse_header(data[:end])


@lru_cache(maxsize=4096)
def _parse_header(header: bytes) -> _Header:
    """Parse a header; the replies of a round have the same ones, and NumPy takes its time."""
    read = npy.read_array_header_1_0 if header[6] == 1 else npy.read_array_header_2_0
    try:
        shape, fortran_order, dtype = read(BytesIO(header[npy.MAGIC_LEN :]))
        # NumPy lets True pass for 1.
        shape = tuple(map(int, shape))
    except Exception as error:
        # It is a Python literal; one flipped byte can raise almost anything.
        raise ValueError(repr(error)) from error
    return _Header(len(header), shape, "F" if fortran_order else "C", dtype, str(dtype))


def encode_arrays(model: Mapping[str, Tensor]) -> ArrayRecord:
    """Put a model's CPU tensors, by name, into an ArrayRecord."""
    return ArrayRecord({name: _encoded(tensor) for name, tensor in model.items()})


def take_as_arrays(model: dict[str, Tensor]) -> ArrayRecord:
    """Do what `encode_arrays` does, and take each tensor out of `model` once it is encoded."""
    return ArrayRecord({name: _encoded(model.pop(name)) for name in tuple(model)})


def _encoded(tensor: Tensor) -> Array:
    """Make the Array that Flower makes of a tensor, the payload in one piece of memory at once."""
    ndarray = np.ascontiguousarray(tensor.numpy()).reshape(tensor.shape)
    header = BytesIO()
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(ndarray))
    data = b"".join((header.getvalue(), ndarray.data))
    return Array(dtype=str(ndarray.dtype), shape=ndarray.shape, stype=_STYPE, data=data)


with warnings.catch_warnings():
    # PyTorch says once in a process that writing to a read-only array would be undefined; said here
    # to nobody, because silencing it every time is slow and not safe among threads.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    torch.from_numpy(np.frombuffer(b"\0", dtype=np.uint8))


def in_dtype(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Cast a floating array to another floating dtype; any array to this machine's byte order.

    Integers are not cast, nor floating arrays to integers.
    """
    native = array.dtype.newbyteorder("=")
    both_floating = array.dtype.kind == "f" and dtype.kind == "f"
    return array.astype(dtype.newbyteorder("=") if both_floating else native, copy=False)


class ArrayTensors(Mapping[str, Tensor]):
    """An ArrayRecord seen as tensors by name; each is decoded when it is asked for first.

    Floating arrays are seen in the dtypes of `like`. What has to be cast is cast each time it is
    asked for: the cast of a whole model is never held. A tensor that cannot be decoded, or has a
    dtype that PyTorch lacks, is a ValueError with its name.
    """

    def __init__(self, arrays: ArrayRecord, like: Mapping[str, Tensor] | None = None) -> None:
        self._arrays = arrays
        self._like = {} if like is None else like
        self._ndarrays: dict[str, npt.NDArray[Any]] = {}
        self._views: dict[str, Tensor] = {}

    def ndarray(self, name: str) -> npt.NDArray[Any]:
        """Decode one array as it was sent, not cast."""
        if name not in self._ndarrays:
            with _naming(name):
                self._ndarrays[name] = decode_array(self._arrays[name])
        return self._ndarrays[name]

    def __getitem__(self, name: str) -> Tensor:
        if name in self._views:
            return self._views[name]
        ndarray = self.ndarray(name)
        like = self._like.get(name)
        cast = in_dtype(ndarray, ndarray.dtype if like is None else like.numpy().dtype)
        try:
            view = torch.from_numpy(cast)
        except TypeError as error:
            raise ValueError(
                f"tensor {name!r}: dtype {cast.dtype} has no counterpart in PyTorch"
            ) from error
        if cast is ndarray:
            self._views[name] = view
        return view

    def packed_update(self, name: str) -> PackedUpdate | None:
        """Return the update of a tensor that is packed; None for one that is not."""
        return None

    def __contains__(self, name: object) -> bool:
        # Mapping's own would decode the tensor.
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


class PackedTensors(ArrayTensors):
    """An ArrayRecord with packed updates, seen as the trained tensors w_k = w − Δ̃_k.

    `packed` names the arrays that are packed; the others are w_k themselves. `dtype` and `rate` are
    what the server asked for: a mask keeps no more entries than the drop rate leaves.
    """

    def __init__(
        self,
        arrays: ArrayRecord,
        packed: Collection[str],
        global_model: Mapping[str, Tensor],
        dtype: str,
        rate: float,
    ) -> None:
        super().__init__(arrays, global_model)
        self._packed = packed
        self._indices = {name: index for index, name in enumerate(global_model)}
        self._global_model = global_model
        self._dtype = dtype
        self._rate = rate
        self._updates: dict[str, PackedUpdate] = {}

    def __getitem__(self, name: str) -> Tensor:
        update = self.packed_update(name)
        if update is None:
            return super().__getitem__(name)
        start = self._global_model[name]
        return subtract_update(start, update.unpack().to(working_dtype(start.dtype)))

    def packed_update(self, name: str) -> PackedUpdate | None:
        """Return the update of a tensor that is packed; None for one that is not."""
        if name not in self._packed:
            return None
        if name not in self._updates:
            start = self._global_model[name]
            if not start.is_floating_point():
                raise ValueError(f"tensor {name!r} is packed but {start.dtype}, not floating")
            payload = self.ndarray(name)
            most_kept = start.numel() - entry_count(start.numel(), self._rate)
            with _naming(name):
                self._updates[name] = PackedUpdate(
                    payload, start.numel(), self._dtype, most_kept, self._indices[name]
                )
        return self._updates[name]


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put a tensor's name in front of what is said to be wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"tensor {name!r}: {error}") from error
