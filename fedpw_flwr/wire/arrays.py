"""Between Flower's ArrayRecord and tensors by name, without copying what is only read.

A reply's arrays stay the bytes that came from the network; a tensor is a view of them, made when
the algorithm asks for it. What a payload claims about itself is checked before it is believed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from torch import Tensor

from fedpw_flwr.algorithm.adjustment import entry_count
from fedpw_flwr.algorithm.blocks import BlockReader, DenseBlocks, is_plain
from fedpw_flwr.algorithm.client_step import subtract_update
from fedpw_flwr.algorithm.kernels import Float32s, Kernels
from fedpw_flwr.algorithm.tensors import working_dtype
from fedpw_flwr.wire.packing import PackedUpdate

__all__ = [
    "ArrayTensors",
    "PackedTensors",
    "array_of_npy",
    "decode_array",
    "encode_arrays",
    "view_tensor",
]

_STYPE = "numpy.ndarray"
_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def decode_array(array: Array) -> Tensor:
    """View a Flower Array as a read-only CPU tensor.

    Parameters
    ----------
    array : Array
        Array of stype ``numpy.ndarray``.

    Returns
    -------
    Tensor
        Shares memory with `array`: it must not be written to.

    Raises
    ------
    ValueError
        If the payload is not an npy array, holds objects, has another length, shape or dtype than
        it claims, or has a dtype that PyTorch lacks.
    """
    if array.stype != _STYPE:
        raise ValueError(f"serialization type {array.stype!r} instead of {_STYPE!r}")
    try:
        offset, shape, fortran_order, dtype = _read_header(array.data)
    except ValueError as error:
        raise ValueError(f"the npy header cannot be read: {error}") from error
    if dtype.hasobject:
        raise ValueError("the payload holds Python objects")
    if shape != tuple(array.shape) or str(dtype) != array.dtype:
        raise ValueError(
            f"the payload is {dtype} {shape} but claims to be {array.dtype} {tuple(array.shape)}"
        )
    entries = math.prod(shape)
    if len(array.data) - offset != entries * dtype.itemsize:
        raise ValueError(
            f"the payload holds {len(array.data) - offset} bytes instead of "
            f"{entries * dtype.itemsize}"
        )
    flat = np.frombuffer(array.data, dtype=dtype, count=entries, offset=offset)
    ndarray = flat.reshape(shape, order="F" if fortran_order else "C")
    try:
        return view_tensor(ndarray)
    except TypeError as error:
        raise ValueError(f"dtype {dtype} has no counterpart in PyTorch") from error


def _read_header(data: bytes) -> tuple[int, tuple[int, ...], bool, np.dtype[Any]]:
    """Return where the entries begin, the shape, whether it is in Fortran order, and the dtype.

    Raises
    ------
    ValueError
        If there is no npy header of format 1 or 2.
    """
    version = npy.read_magic(BytesIO(data[: npy.MAGIC_LEN]))
    if version not in _READ_HEADER:
        raise ValueError(f"unsupported npy format version {version}")
    end = npy.MAGIC_LEN + (2 if version == (1, 0) else 4)
    end += int.from_bytes(data[npy.MAGIC_LEN : end], "little")
    return end, *_parse_header(data[:end], version)


@lru_cache(maxsize=4096)
def _parse_header(
    header: bytes, version: tuple[int, int]
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse a header; the replies of a round have the same ones, and NumPy takes its time."""
    try:
        stream = BytesIO(header)
        stream.seek(npy.MAGIC_LEN)
        shape, fortran_order, dtype = _READ_HEADER[version](stream)
    except Exception as error:
        # It is a Python literal; one flipped byte can raise almost anything.
        raise ValueError(repr(error)) from error
    # NumPy lets True pass for 1.
    return tuple(map(int, shape)), fortran_order, dtype


def view_tensor(ndarray: npt.NDArray[Any]) -> Tensor:
    """View a NumPy array, which may be read-only, as a tensor that is only read.

    Raises
    ------
    TypeError
        If PyTorch lacks the dtype.
    """
    return torch.from_numpy(ndarray)


with warnings.catch_warnings():
    # PyTorch says once in a process that writing to a read-only array would be undefined; said here
    # to nobody, because silencing it every time is slow and not safe among threads.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    view_tensor(np.frombuffer(b"\0", dtype=np.uint8))


class ArrayTensors(Mapping[str, Tensor]):
    """An ArrayRecord seen as tensors by name; each is decoded when it is asked for first.

    Parameters
    ----------
    arrays : ArrayRecord
        The record; kept, not copied.
    """

    def __init__(self, arrays: ArrayRecord) -> None:
        self._arrays = arrays
        self._views: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """Decode one tensor; raises ValueError with its name if the payload is broken."""
        if name not in self._views:
            try:
                self._views[name] = decode_array(self._arrays[name])
            except ValueError as error:
                raise ValueError(f"tensor {name!r}: {error}") from error
        return self._views[name]

    def packed_update(self, name: str) -> PackedUpdate | None:
        """Return the update of a tensor that is packed: here none is."""
        return None

    def block_reader(self, name: str, start: Float32s, loops: Kernels) -> BlockReader | None:
        """Return the reader of one tensor, see `BlockSource`."""
        trained = self[name]
        return DenseBlocks(trained) if is_plain(trained) else None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the record's order."""
        return iter(self._arrays)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._arrays)


class PackedBlocks:
    """w_k = w − Δ̃_k of a packed update.

    Parameters
    ----------
    update : PackedUpdate
        Δ̃_k.
    start : NDArray[float32]
        w, flat.
    loops : Kernels
        What unpacks.
    """

    def __init__(self, update: PackedUpdate, start: Float32s, loops: Kernels) -> None:
        self._update = update
        self._start = start
        self._loops = loops

    def read(self, begin: int, end: int, room: Float32s) -> Float32s:
        """Write w_k[begin:end] to `room`, rounded as if it had come dense."""
        self._update.subtract_from(self._start[begin:end], begin, room, self._loops)
        return room


class PackedTensors(ArrayTensors):
    """An ArrayRecord with packed updates, seen as the trained tensors w_k = w − Δ̃_k.

    Parameters
    ----------
    arrays : ArrayRecord
        The record; kept, not copied.
    packed : Collection[str]
        Names of the arrays that are packed; the others are w_k themselves.
    global_model : Mapping[str, Tensor]
        w.
    dtype : str
        Type of packed values that was asked for.
    rate : float
        Drop rate that was asked for: a mask keeps no more than it leaves.
    """

    def __init__(
        self,
        arrays: ArrayRecord,
        packed: Collection[str],
        global_model: Mapping[str, Tensor],
        dtype: str,
        rate: float,
    ) -> None:
        super().__init__(arrays)
        self._packed = packed
        self._places = {name: place for place, name in enumerate(global_model)}
        self._global_model = global_model
        self._dtype = dtype
        self._rate = rate
        self._updates: dict[str, PackedUpdate] = {}

    def __getitem__(self, name: str) -> Tensor:
        """Decode one tensor; raises ValueError with its name if the payload is broken."""
        if name not in self._packed:
            return super().__getitem__(name)
        start = self._global_model[name]
        return subtract_update(start, self._update(name).unpack().to(working_dtype(start.dtype)))

    def block_reader(self, name: str, start: Float32s, loops: Kernels) -> BlockReader | None:
        """Return the reader of one tensor, see `BlockSource`."""
        if name not in self._packed:
            return super().block_reader(name, start, loops)
        return PackedBlocks(self._update(name), start, loops)

    def packed_update(self, name: str) -> PackedUpdate | None:
        """Return a packed tensor's update; None for one that is not packed.

        Raises
        ------
        ValueError
            If its payload cannot be unpacked, or the tensor is not floating.
        """
        return self._update(name) if name in self._packed else None

    def _update(self, name: str) -> PackedUpdate:
        if name not in self._updates:
            start = self._global_model[name]
            if not start.is_floating_point():
                raise ValueError(f"tensor {name!r} is packed but {start.dtype}, not floating")
            payload = super().__getitem__(name).numpy()
            most_kept = start.numel() - entry_count(start.numel(), self._rate)
            try:
                self._updates[name] = PackedUpdate(
                    payload, start.numel(), self._dtype, most_kept, self._places[name]
                )
            except ValueError as error:
                raise ValueError(f"tensor {name!r}: {error}") from error
        return self._updates[name]


def array_of_npy(data: bytes, stype: str = _STYPE) -> Array:
    """Wrap an npy payload, as Flower's legacy API carries arrays, without copying it.

    A payload that cannot be read is wrapped, too: `decode_array` says what is wrong with it.
    """
    try:
        _, shape, _, dtype = _read_header(data)
    except ValueError:
        return Array(dtype="unknown", shape=(), stype=stype, data=data)
    return Array(dtype=str(dtype), shape=shape, stype=stype, data=data)


def encode_arrays(model: Mapping[str, Tensor]) -> ArrayRecord:
    """Put a model's CPU tensors, by name, into an ArrayRecord."""
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in model.items()})
