"""Packed updates: one bit an entry says whether it was kept, then the kept values.

A masked update is mostly worth sending without its zeros. One flat update becomes one array of
bytes: a header of 24 bytes (the mark ``FPW1``, the value type, a scale, the array's place in the
model, its number of entries, a CRC-32 of all the rest), the bit mask, the values. Values may be
halved to float16 or bfloat16; float16 values are scaled by a power of two first, so that small
updates keep their precision and large ones do not overflow.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpw_flwr.engines.kernels import Bytes, Float32s, Kernels, uncompiled

__all__ = [
    "MOST_ENTRIES",
    "UPLOAD_DTYPES",
    "PackedUpdate",
    "UploadDtype",
    "pack_update",
    "packed_size",
    "unpack_update",
]

UploadDtype = Literal["float32", "float16", "bfloat16"]
UPLOAD_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""Types of packed values, in the order of their code in the header."""

MOST_ENTRIES = 2**32 - 1
"""Larger arrays than the header can count travel dense."""

_MARK = b"FPW1"
_HEADER = struct.Struct("<4sB3xfIII")
_CHECKSUM = slice(_HEADER.size - 4, _HEADER.size)

_SIGNED = {2: torch.int16, 4: torch.int32}
"""Integers as wide as a value, by its bytes."""

_STEP = 1024
_CHECKED = 1 << 16
"""Values that are checked together."""


def packed_size(entries: int, kept: int, dtype: str) -> int:
    """Return the bytes that a packed update of `entries` entries with `kept` values takes."""
    return _HEADER.size + (entries + 7) // 8 + kept * UPLOAD_DTYPES[dtype].itemsize


def pack_update(update: Tensor, dtype: str, place: int = 0, most: Tensor | None = None) -> Bytes:
    """Pack one flat update; entries that are 0 travel as a bit only.

    Parameters
    ----------
    update : Tensor
        Δ̃_k of one tensor, flat, floating, on the CPU, every entry finite. Not modified.
    dtype : str
        Type of the values on the way: "float32", "float16" or "bfloat16".
    place : int (default: 0)
        Place of the array in the model.
    most : Tensor | None (default: None)
        What no entry exceeds, nor may after rounding, in the shape and dtype of `update`: w, where
        w − Δ̃_k must not become negative. None: values are rounded to nearest.

    Returns
    -------
    NDArray[np.uint8]
        The payload, shape (bytes,).
    """
    entries = update.numpy()
    kept_entries = entries != 0
    kept = torch.from_numpy(np.compress(kept_entries, entries)).float()
    scale = _float16_scale(kept) if dtype == "float16" else 1.0
    values = (kept / scale if scale != 1.0 else kept).to(UPLOAD_DTYPES[dtype])
    if most is not None:
        above = values.double() * scale > most[torch.from_numpy(kept_entries)].double()
        # One step towards 0: the bits of a positive float, less one.
        values.view(_SIGNED[values.itemsize])[above] -= 1
    bits = np.packbits(kept_entries)
    payload = np.empty(packed_size(len(entries), len(kept), dtype), dtype=np.uint8)
    code = list(UPLOAD_DTYPES).index(dtype)
    _HEADER.pack_into(payload.data, 0, _MARK, code, scale, place, len(entries), 0)
    payload[_HEADER.size : _HEADER.size + len(bits)] = bits
    if len(kept):
        payload[_HEADER.size + len(bits) :] = values.view(torch.uint8).numpy()
    payload[_CHECKSUM] = _checksum(payload)
    return payload


class PackedUpdate:
    """A packed update that was checked, of which any block can be unpacked.

    Parameters
    ----------
    payload : NDArray[np.uint8]
        What `pack_update` returned, shape (bytes,); kept, not copied.
    entries : int
        Number of entries of the tensor it belongs to.
    dtype : str
        The type of values that was asked for.
    most_kept : int | None (default: None)
        Entries that the drop rate leaves; None where any number will do.
    place : int (default: 0)
        Place of the array in the model.

    Attributes
    ----------
    most_norm : float
        What ‖Δ̃_k‖ is at most, going by the largest value.

    Raises
    ------
    ValueError
        If the payload is not that of this array in this type, contradicts itself, or holds values
        that are not finite.
    """

    def __init__(
        self,
        payload: Bytes,
        entries: int,
        dtype: str,
        most_kept: int | None = None,
        place: int = 0,
    ) -> None:
        self._scale, bits = _checked_header(payload, entries, dtype, place)
        end = _HEADER.size + (entries + 7) // 8
        self._entries = entries
        self._bits = payload[_HEADER.size : end]
        self._values = payload[end:]
        self._aligned = self._values.ctypes.data % UPLOAD_DTYPES[dtype].itemsize == 0
        self._dtype = UPLOAD_DTYPES[dtype]
        # How many values precede every 1024th entry, and the end.
        self._kept_before = np.append(0, np.cumsum(_ones_in_steps(self._bits)))
        kept = int(self._kept_before[-1])
        if entries % 8 and self._bits[-1] & (0xFF >> entries % 8):
            raise ValueError(f"the bit mask has bits behind its {entries} entries")
        if payload.size != packed_size(entries, kept, dtype):
            raise ValueError(
                f"the bit mask keeps {kept} of {entries} entries, which does not agree with the "
                f"{payload.size} bytes of the payload"
            )
        if most_kept is not None and kept > most_kept:
            raise ValueError(
                f"the bit mask keeps {kept} of {entries} entries, the drop rate leaves {most_kept}"
            )
        self._check_values(kept, bits, dtype)

    def subtract_from(
        self, start: Float32s, begin: int, out: Float32s, loops: Kernels = uncompiled
    ) -> None:
        """Write w − Δ̃_k to `out`, of as many entries as w has from `begin` on.

        Parameters
        ----------
        start : NDArray[float32]
            w of these entries, shape (n,).
        begin : int
            The first of them, a multiple of 1024.
        out : NDArray[float32]
            Shape (n,), overwritten.
        loops : Kernels (default: those in NumPy)
            What unpacks.
        """
        end = begin + len(start)
        first = int(self._kept_before[begin // _STEP])
        last = int(self._kept_before[-(-end // _STEP)])
        bits = self._bits[begin // 8 : (end + 7) // 8]
        values = self._floats(first, last)
        loops.unpack(bits, values, np.float32(self._scale), start, out)

    def unpack(self) -> Tensor:
        """Return the whole update Δ̃_k, float32, shape (n,)."""
        nothing = np.zeros(self._entries, dtype=np.float32)
        update = np.empty_like(nothing)
        self.subtract_from(nothing, 0, update)
        return torch.from_numpy(np.subtract(nothing, update, out=update))

    def norm(self) -> float:
        """Return ‖Δ̃_k‖."""
        kept, squares = int(self._kept_before[-1]), 0.0
        for first in range(0, kept, _CHECKED):
            last = min(first + _CHECKED, kept)
            values = self._floats(first, last)[: last - first]
            squares += float(np.square(values, dtype=np.float64).sum())
        return math.sqrt(squares) * self._scale

    def _stored(self, first: int, last: int) -> Bytes:
        """Return the bytes of the values [first:last], aligned as NumPy and PyTorch need them."""
        size = self._dtype.itemsize
        stored = self._values[first * size : last * size]
        return stored if self._aligned else stored.copy()

    def _floats(self, first: int, last: int) -> Float32s:
        """Return the values [first:last] in float32, as they were packed, and 8 numbers more."""
        if self._aligned and self._dtype is torch.float32 and 4 * (last + 8) <= len(self._values):
            view: Float32s = self._values[4 * first : 4 * (last + 8)].view(np.float32)
            return view
        if first == last:
            return np.zeros(8, dtype=np.float32)
        floats = np.empty(last - first + 8, dtype=np.float32)
        stored = torch.from_numpy(self._stored(first, last)).view(self._dtype)
        torch.from_numpy(floats[: last - first]).copy_(stored)
        floats[last - first :] = 0
        return floats

    def _check_values(self, kept: int, bits: int, dtype: str) -> None:
        signed = np.dtype(f"i{self._dtype.itemsize}")
        largest = float(torch.from_numpy(np.array([bits], signed)).view(self._dtype))
        self.most_norm = math.sqrt(kept) * largest * self._scale
        if not largest * self._scale <= torch.finfo(torch.float32).max:
            raise ValueError("the packed values are not finite")
        if not _is_scale_of(self._scale, largest, dtype):
            raise ValueError(
                f"the packed values, up to {largest}, cannot have the scale {self._scale}"
            )


def unpack_update(
    payload: Bytes,
    entries: int,
    dtype: str,
    most_kept: int | None = None,
    place: int = 0,
) -> Tensor:
    """Unpack one whole update; arguments and errors as those of `PackedUpdate`.

    Returns
    -------
    Tensor
        The update, float32, shape (entries,).
    """
    return PackedUpdate(payload, entries, dtype, most_kept, place).unpack()


def _checked_header(payload: Bytes, entries: int, dtype: str, place: int) -> tuple[float, int]:
    """Check what a payload says about itself.

    Returns
    -------
    tuple[float, int]
        The scale of its values, and the bits of the largest magnitude among them.
    """
    if payload.dtype != np.uint8 or payload.ndim != 1:
        raise ValueError(
            f"a packed update is one row of bytes, not {payload.dtype} {payload.shape}"
        )
    if payload.size < _HEADER.size + (entries + 7) // 8:
        raise ValueError(
            f"{payload.size} bytes are too few for a packed update of {entries} entries"
        )
    scale: float
    mark, code, scale, its_place, its_entries, _ = _HEADER.unpack_from(payload.data)
    if mark != _MARK:
        raise ValueError(f"a packed update begins with {_MARK!r}, not {mark!r}")
    values = _HEADER.size + (entries + 7) // 8
    checksum, bits = _read_through(payload, values, UPLOAD_DTYPES[dtype].itemsize)
    if not np.array_equal(payload[_CHECKSUM], checksum):
        raise ValueError("the checksum of the packed update does not agree with its content")
    if code != list(UPLOAD_DTYPES).index(dtype):
        raise ValueError(f"the packed values are of type {code}, not {dtype} as asked for")
    if (its_place, its_entries) != (place, entries):
        raise ValueError(
            f"the packed update is that of array {its_place} with {its_entries} entries, not of "
            f"array {place} with {entries}"
        )
    return scale, bits


def _ones_in_steps(bits: Bytes) -> npt.NDArray[np.int64]:
    """Count the ones in every 1024 bits; the last count may be that of fewer."""
    padded = np.zeros(-(-len(bits) * 8 // _STEP) * _STEP // 8, dtype=np.uint8)
    padded[: len(bits)] = bits
    words = np.bitwise_count(padded.view(np.uint64)).reshape(-1, _STEP // 64)
    counts: npt.NDArray[np.int64] = words.sum(axis=1, dtype=np.int64)
    return counts


def _checksum(payload: Bytes) -> Bytes:
    """Return the bytes of the CRC-32 of everything but themselves."""
    return _read_through(payload, payload.size, 1)[0]


def _read_through(payload: Bytes, values: int, size: int) -> tuple[Bytes, int]:
    """Read a payload once, a part at a time that stays in the cache.

    Parameters
    ----------
    payload : NDArray[uint8]
        Any bytes.
    values, size : int
        Where the values begin, and the bytes of one.

    Returns
    -------
    tuple[NDArray[uint8], int]
        The bytes of the CRC-32 of everything but themselves, and the bits of the largest magnitude
        among the values: but for the sign's they are in the order of magnitudes, with infinity and
        NaN behind them all.
    """
    crc = zlib.crc32(payload[: _CHECKSUM.start].data)
    crc = zlib.crc32(payload[_CHECKSUM.stop : values].data, crc)
    signed, unsigned = np.dtype(f"i{size}"), np.dtype(f"u{size}")
    bits, sign = 0, 1 << (8 * size - 1)
    for first in range(values, payload.size, _CHECKED * size):
        part = payload[first : first + _CHECKED * size]
        crc = zlib.crc32(part.data, crc)
        whole = part[: part.size // size * size]
        if whole.size:
            # As signed numbers the largest of the positive, as unsigned ones of the negative.
            positive, negative = whole.view(signed).max(), whole.view(unsigned).max()
            bits = max(bits, int(positive), int(negative) - sign)
    return np.frombuffer(struct.pack("<I", crc), dtype=np.uint8), bits


def _float16_scale(values: Tensor) -> float:
    """Return the power of two that brings the largest magnitude into [1, 2)."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest == 0.0:
        return 1.0
    # float32 holds the scale; beyond its range the values are float64's own and stay unscaled.
    return math.ldexp(1.0, max(-126, min(127, math.frexp(largest)[1] - 1)))


def _is_scale_of(scale: float, largest: float, dtype: str) -> bool:
    """Return whether packing would have chosen this scale for values of this largest magnitude."""
    if dtype != "float16" or largest == 0.0:
        return scale == 1.0
    if not math.isfinite(scale) or scale <= 0 or math.frexp(scale)[0] != 0.5:
        return False
    at_the_end = scale == math.ldexp(1.0, -126)
    return (largest >= 1.0 or at_the_end) and largest <= 2.0
