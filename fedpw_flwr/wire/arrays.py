"""Between Flower's ArrayRecord and tensors by name, without copying what is only read.

A reply's arrays stay the bytes that came from the network; a tensor is a view of them, made when
the algorithm asks for it. What a payload claims about itself is checked before it is believed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from torch import Tensor

from fedpw_flwr.algorithm.adjustment import entry_count
from fedpw_flwr.algorithm.client_step import subtract_update
from fedpw_flwr.algorithm.tensors import working_dtype
from fedpw_flwr.wire.packing import unpack_update

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
    header = BytesIO(array.data)
    version = npy.read_magic(header)
    if version not in _READ_HEADER:
        raise ValueError(f"unsupported npy format version {version}")
    try:
        shape, fortran_order, dtype = _READ_HEADER[version](header)
    except Exception as error:
        # NumPy parses the header as a Python literal; one flipped byte can raise almost anything.
        raise ValueError(f"the npy header cannot be read: {error!r}") from error
    if dtype.hasobject:
        raise ValueError("the payload holds Python objects")
    if tuple(shape) != tuple(array.shape) or str(dtype) != array.dtype:
        raise ValueError(
            f"the payload is {dtype} {tuple(shape)} but claims to be {array.dtype} "
            f"{tuple(array.shape)}"
        )
    offset, entries = header.tell(), math.prod(shape)
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


def view_tensor(ndarray: npt.NDArray[Any]) -> Tensor:
    """View a NumPy array, which may be read-only, as a tensor that is only read.

    Raises
    ------
    TypeError
        If PyTorch lacks the dtype.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(ndarray)


class ArrayTensors(Mapping[str, Tensor]):
    """An ArrayRecord seen as tensors by name; each is decoded when it is asked for.

    Parameters
    ----------
    arrays : ArrayRecord
        The record; kept, not copied.
    """

    def __init__(self, arrays: ArrayRecord) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> Tensor:
        """Decode one tensor; raises ValueError with its name if the payload is broken."""
        array = self._arrays[name]
        try:
            return decode_array(array)
        except ValueError as error:
            raise ValueError(f"tensor {name!r}: {error}") from error

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the record's order."""
        return iter(self._arrays)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._arrays)


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

    def __getitem__(self, name: str) -> Tensor:
        """Decode one tensor; raises ValueError with its name if the payload is broken."""
        if name not in self._packed:
            return super().__getitem__(name)
        start = self._global_model[name]
        if not start.is_floating_point():
            raise ValueError(f"tensor {name!r} is packed but {start.dtype}, not floating")
        return subtract_update(start, self._update(name).to(working_dtype(start.dtype)))

    def _update(self, name: str) -> Tensor:
        payload = super().__getitem__(name).numpy()
        entries = self._global_model[name].numel()
        most_kept = entries - entry_count(entries, self._rate)
        try:
            return unpack_update(payload, entries, self._dtype, most_kept, self._places[name])
        except ValueError as error:
            raise ValueError(f"tensor {name!r}: {error}") from error


def array_of_npy(data: bytes, stype: str = _STYPE) -> Array:
    """Wrap an npy payload, as Flower's legacy API carries arrays, without copying it.

    A payload that cannot be read is wrapped, too: `decode_array` says what is wrong with it.
    """
    try:
        header = BytesIO(data)
        version = npy.read_magic(header)
        shape, _, dtype = _READ_HEADER[version](header)
    except Exception:
        return Array(dtype="unknown", shape=(), stype=stype, data=data)
    return Array(dtype=str(dtype), shape=tuple(shape), stype=stype, data=data)


def encode_arrays(model: Mapping[str, Tensor]) -> ArrayRecord:
    """Put a model's CPU tensors, by name, into an ArrayRecord."""
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in model.items()})
