"""Between Flower's ArrayRecord and tensors by name, without copying what is only read.

A reply's arrays stay the bytes that came from the network; a tensor is a view of them, made when
the algorithm asks for it. What a payload claims about itself is checked before it is believed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from torch import Tensor

from fedpw_flwr.algorithm.adjustment import entry_count
from fedpw_flwr.algorithm.client_step import subtract_update
from fedpw_flwr.algorithm.tensors import working_dtype
from fedpw_flwr.engines.blocks import BlockReader, DenseBlocks
from fedpw_flwr.engines.kernels import Float32s, Kernels
from fedpw_flwr.wire.packing import PackedUpdate

__all__ = [
    "ArrayTensors",
    "PackedTensors",
    "array_of_npy",
    "decode_array",
    "encode_arrays",
    "in_dtype",
    "take_as_arrays",
    "view_tensor",
]

_STYPE = "numpy.ndarray"
_LENGTH_BYTES = {npy.magic(1, 0): 2, npy.magic(2, 0): 4}
"""How many bytes hold the length of a header, by how its format begins."""


@dataclass(frozen=True)
class _Header:
    """What an npy header says.

    Attributes
    ----------
    begin, length : int
        Where the entries begin, and the length of header and entries, in bytes.
    entries : int
        Number of entries.
    shape, order, dtype
        Of the array, as NumPy has them.
    dtype_name : str
        The dtype as Flower names it.
    """

    begin: int
    length: int
    entries: int
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype[Any]
    dtype_name: str


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
    return _tensor_of(_decode_ndarray(array))


def _decode_ndarray(array: Array) -> npt.NDArray[Any]:
    """Do what `decode_array` does, for a NumPy array; its dtype may be one that PyTorch lacks."""
    if array.stype != _STYPE:
        raise ValueError(f"serialization type {array.stype!r} instead of {_STYPE!r}")
    data = array.data
    try:
        header = _read_header(data)
    except ValueError as error:
        raise ValueError(f"the npy header cannot be read: {error}") from error
    if header.dtype.hasobject:
        raise ValueError("the payload holds Python objects")
    if header.shape != tuple(array.shape) or header.dtype_name != array.dtype:
        raise ValueError(
            f"the payload is {header.dtype} {header.shape} but claims to be {array.dtype} "
            f"{tuple(array.shape)}"
        )
    if len(data) != header.length:
        raise ValueError(
            f"the payload holds {len(data) - header.begin} bytes instead of "
            f"{header.length - header.begin}"
        )
    flat = np.frombuffer(data, dtype=header.dtype, count=header.entries, offset=header.begin)
    return flat.reshape(header.shape, order=header.order)


def _tensor_of(ndarray: npt.NDArray[Any]) -> Tensor:
    try:
        return view_tensor(ndarray)
    except TypeError as error:
        raise ValueError(f"dtype {ndarray.dtype} has no counterpart in PyTorch") from error


def _read_header(data: bytes) -> _Header:
    """Read what an npy payload says about itself.

    Raises
    ------
    ValueError
        If there is no npy header of format 1 or 2.
    """
    length_bytes = _LENGTH_BYTES.get(data[: npy.MAGIC_LEN])
    if length_bytes is None:
        version = npy.read_magic(BytesIO(data[: npy.MAGIC_LEN]))
        raise ValueError(f"unsupported npy format version {version}")
    end = npy.MAGIC_LEN + length_bytes
    end += int.from_bytes(data[npy.MAGIC_LEN : end], "little")
    return _parse_header(data[:end])


@lru_cache(maxsize=4096)
def _parse_header(header: bytes) -> _Header:
    """Parse a header; the replies of a round have the same ones, and NumPy takes its time."""
    read = npy.read_array_header_1_0 if header[6] == 1 else npy.read_array_header_2_0
    try:
        stream = BytesIO(header)
        stream.seek(npy.MAGIC_LEN)
        shape, fortran_order, dtype = read(stream)
        # NumPy lets True pass for 1.
        shape = tuple(map(int, shape))
        entries = math.prod(shape)
    except Exception as error:
        # It is a Python literal; one flipped byte can raise almost anything.
        raise ValueError(repr(error)) from error
    return _Header(
        begin=len(header),
        length=len(header) + entries * dtype.itemsize,
        entries=entries,
        shape=shape,
        order="F" if fortran_order else "C",
        dtype=dtype,
        dtype_name=str(dtype),
    )


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


def in_dtype(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Cast a floating array to another floating dtype; any array to this machine's byte order.

    Returns
    -------
    NDArray
        The array itself where nothing is to be done; in a dtype of its own where it is not one
        that is cast: integers are not, nor floating arrays to integers.
    """
    native = array.dtype.newbyteorder("=")
    both_floating = array.dtype.kind == "f" and dtype.kind == "f"
    return array.astype(dtype.newbyteorder("=") if both_floating else native, copy=False)


class ArrayTensors(Mapping[str, Tensor]):
    """An ArrayRecord seen as tensors by name; each is decoded when it is asked for first.

    Parameters
    ----------
    arrays : ArrayRecord
        The record; kept, not copied.
    like : Mapping[str, Tensor] | None (default: None)
        Tensors in whose dtypes floating arrays are seen, by name. What has to be cast is cast each
        time it is asked for: the cast of a whole model is never held.
    """

    def __init__(self, arrays: ArrayRecord, like: Mapping[str, Tensor] | None = None) -> None:
        self._arrays = arrays
        self._like = {} if like is None else like
        self._ndarrays: dict[str, npt.NDArray[Any]] = {}
        self._views: dict[str, Tensor] = {}

    def ndarray(self, name: str) -> npt.NDArray[Any]:
        """Decode one array as it was sent, not cast; raises ValueError as `__getitem__` does."""
        ndarray = self._ndarrays.get(name)
        if ndarray is None:
            try:
                ndarray = self._ndarrays[name] = _decode_ndarray(self._arrays[name])
            except ValueError as error:
                raise ValueError(f"tensor {name!r}: {error}") from error
        return ndarray

    def __getitem__(self, name: str) -> Tensor:
        """Decode one tensor; raises ValueError with its name if the payload is broken."""
        view = self._views.get(name)
        if view is None:
            ndarray = self.ndarray(name)
            like = self._like.get(name)
            cast = in_dtype(ndarray, ndarray.dtype if like is None else like.numpy().dtype)
            try:
                view = _tensor_of(cast)
            except ValueError as error:
                raise ValueError(f"tensor {name!r}: {error}") from error
            if cast is ndarray:
                self._views[name] = view
        return view

    def packed_update(self, name: str) -> PackedUpdate | None:
        """Return the update of a tensor that is packed: here none is."""
        return None

    def block_reader(self, name: str, start: Float32s, loops: Kernels) -> BlockReader | None:
        """Return the reader of one tensor, see `BlockSource`."""
        trained = self.ndarray(name)
        return DenseBlocks(trained) if trained.dtype.kind == "f" else None

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
        super().__init__(arrays, global_model)
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
            payload = self.ndarray(name)
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
        header = _read_header(data)
    except ValueError:
        return Array(dtype="unknown", shape=(), stype=stype, data=data)
    return Array(dtype=header.dtype_name, shape=header.shape, stype=stype, data=data)


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
    return Array(
        dtype=str(ndarray.dtype),
        shape=ndarray.shape,
        stype=_STYPE,
        data=b"".join((header.getvalue(), ndarray.data)),
    )
