"""Between Flower's ArrayRecord and tensors by name, without copying what is only read.

A reply's arrays stay the bytes that came from the network; a tensor is a view of them, made when
the algorithm asks for it. What a payload claims about itself is checked before it is believed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from io import BytesIO

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from torch import Tensor

__all__ = ["ArrayTensors", "decode_array", "encode_arrays"]

_STYPE = "numpy.ndarray"


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
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"unsupported npy format version {version}")
    try:
        shape, fortran_order, dtype = read_header[version](header)
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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(ndarray)
    except TypeError as error:
        raise ValueError(f"dtype {dtype} has no counterpart in PyTorch") from error


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


def encode_arrays(model: Mapping[str, Tensor]) -> ArrayRecord:
    """Put a model's CPU tensors, by name, into an ArrayRecord."""
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in model.items()})
