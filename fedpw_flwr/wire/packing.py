"""Packed updates: one bit an entry says whether it was kept, then the kept values.

A masked update is mostly worth sending without its zeros. One flat update becomes one array of
bytes: a header of 24 bytes (the mark ``FPW1``, the value type, a scale, the array's index in the
model, its number of entries, a CRC-32 of all the rest), the bit mask, the values. Values may be
halved to float16 or bfloat16; float16 values are scaled by a power of two first, so that small
updates keep their precision and large ones do not overflow.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bytes = npt.NDArray[np.uint8]
Float32s = npt.NDArray[np.float32]
Unpack = Callable[[Bytes, Float32s, np.float32, Float32s, Float32s], None]

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
_CHECKSUM_AT = _HEADER.size - 4

_SIGNED = {2: torch.int16, 4: torch.int32}
"""Integers as wide as a value, by its bytes."""

_STEP = 1024
_CHECKED = 1 << 16
"""Values that are checked together, while they are in the cache."""


def packed_size(entries: int, kept: int, dtype: str) -> int:
    """Return the bytes that a packed update of `entries` entries with `kept` values takes."""
    return _values_at(entries) + kept * UPLOAD_DTYPES[dtype].itemsize


def pack_update(update: Tensor, dtype: str, index: int = 0, most: Tensor | None = None) -> Bytes:
    """Pack Δ̃_k of the model's array `index` into bytes, shape (bytes,); zeros travel as a bit only.

    `update` is flat, on the CPU, finite, and not modified. `most`, of its shape and dtype, is what
    no entry exceeds, nor may after rounding: w, where w − Δ̃_k must not become negative. Without it
    values are rounded to nearest.
    """
    entries = update.numpy()
    kept_entries = entries != 0
    kept = torch.from_numpy(np.compress(kept_entries, entries)).float()
    largest = float(kept.abs().max()) if dtype == "float16" and len(kept) else 0.0
    scale = _scale_of(largest, dtype)
    values = (kept / scale if scale != 1.0 else kept).to(UPLOAD_DTYPES[dtype])
    if most is not None:
        above = values.double() * scale > most[torch.from_numpy(kept_entries)].double()
        # One step towards 0: the bits of a positive float, less one.
        values.view(_SIGNED[values.itemsize])[above] -= 1
    payload = np.empty(packed_size(len(entries), len(kept), dtype), dtype=np.uint8)
    code, values_at = list(UPLOAD_DTYPES).index(dtype), _values_at(len(entries))
    _HEADER.pack_into(payload.data, 0, _MARK, code, scale, index, len(entries), 0)
    payload[_HEADER.size : values_at] = np.packbits(kept_entries)
    if len(kept):
        payload[values_at:] = values.view(torch.uint8).numpy()
    # Values that begin behind all bytes: only the checksum is wanted.
    struct.pack_into("<I", payload.data, _CHECKSUM_AT, _read_through(payload, payload.size, 1)[0])
    return payload


class PackedUpdate:
    """A packed update that was checked, of which any block can be unpacked.

    `payload` is kept, not copied. ValueError if it is not that of the array `index` in this type,
    contradicts itself, keeps more than `most_kept` entries (what the drop rate leaves), or holds
    values that are not finite. `most_norm` is what ‖Δ̃_k‖ is at most, going by the largest value.
    """

    def __init__(
        self, payload: Bytes, entries: int, dtype: str, most_kept: int | None = None, index: int = 0
    ) -> None:
        self._scale, largest = _checked_header(payload, entries, dtype, index)
        values_at = _values_at(entries)
        self._entries = entries
        self._dtype = UPLOAD_DTYPES[dtype]
        self._bits, self._values = payload[_HEADER.size : values_at], payload[values_at:]
        self._aligned = self._values.ctypes.data % self._dtype.itemsize == 0
        self._kept_before = _ones_before_steps(self._bits)
        kept = int(self._kept_before[-1])
        keeps = f"the bit mask keeps {kept} of {entries} entries"
        if entries % 8 and self._bits[-1] & (0xFF >> entries % 8):
            raise ValueError(f"the bit mask has bits behind its {entries} entries")
        if payload.size != packed_size(entries, kept, dtype):
            size = payload.size
            raise ValueError(f"{keeps}, which does not agree with the {size} bytes of the payload")
        if most_kept is not None and kept > most_kept:
            raise ValueError(f"{keeps}, the drop rate leaves {most_kept}")
        if not largest * self._scale <= torch.finfo(torch.float32).max:
            raise ValueError("the packed values are not finite")
        # Rounding may have taken the largest to 2.
        if self._scale != _scale_of(self._scale * (1.0 if largest == 2.0 else largest), dtype):
            raise ValueError(
                f"the packed values, up to {largest}, cannot have the scale {self._scale}"
            )
        self.most_norm = math.sqrt(kept) * largest * self._scale

    def subtract_from(
        self, start: Float32s, begin: int, out: Float32s, unpack: Unpack | None = None
    ) -> None:
        """Write w − Δ̃_k to `out`, of as many entries as w has from `begin` on.

        `start` (w of these entries) and `out` have shape (n,); `begin` is a multiple of 1024.
        `unpack` does what `_unpack` does, where it is compiled.
        """
        end = begin + len(start)
        first = int(self._kept_before[begin // _STEP])
        last = int(self._kept_before[-(-end // _STEP)])
        bits = self._bits[begin // 8 : (end + 7) // 8]
        values, scale = self._floats(first, last), np.float32(self._scale)
        (unpack or _unpack)(bits, values, scale, start, out)

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

    def _floats(self, first: int, last: int) -> Float32s:
        """Return the values [first:last] in float32, as they were packed, and 8 numbers more."""
        size = self._dtype.itemsize
        if self._aligned and self._dtype is torch.float32 and 4 * (last + 8) <= len(self._values):
            view: Float32s = self._values[4 * first : 4 * (last + 8)].view(np.float32)
            return view
        floats = np.zeros(last - first + 8, dtype=np.float32)
        if first < last:
            stored = self._values[first * size : last * size]
            # PyTorch and NumPy need them aligned.
            stored = stored if self._aligned else stored.copy()
            torch.from_numpy(floats)[:-8].copy_(torch.from_numpy(stored).view(self._dtype))
        return floats


def _unpack(
    bits: Bytes, values: Float32s, scale: np.float32, start: Float32s, out: Float32s
) -> None:
    """Write w − Δ̃_k over `out`: a bit an entry says whether its value comes next or is 0."""
    kept = torch.from_numpy(np.unpackbits(bits, count=len(out)).view(np.bool_))
    update = torch.zeros(len(out)).masked_scatter_(kept, torch.from_numpy(values))
    np.subtract(start, update.mul_(float(scale)).numpy(), out=out)


def _values_at(entries: int) -> int:
    """Return where the values begin, behind header and bit mask."""
    return _HEADER.size + (entries + 7) // 8


def _checked_header(payload: Bytes, entries: int, dtype: str, index: int) -> tuple[float, float]:
    """Check what a payload says about itself; return the scale and the largest of its values."""
    if payload.dtype != np.uint8 or payload.ndim != 1:
        raise ValueError(
            f"a packed update is one row of bytes, not {payload.dtype} {payload.shape}"
        )
    if payload.size < _values_at(entries):
        raise ValueError(
            f"{payload.size} bytes are too few for a packed update of {entries} entries"
        )
    mark, code, scale, its_index, its_entries, its_checksum = _HEADER.unpack_from(payload.data)
    if mark != _MARK:
        raise ValueError(f"a packed update begins with {_MARK!r}, not {mark!r}")
    value = UPLOAD_DTYPES[dtype]
    checksum, bits = _read_through(payload, _values_at(entries), value.itemsize)
    if its_checksum != checksum:
        raise ValueError("the checksum of the packed update does not agree with its content")
    if code != list(UPLOAD_DTYPES).index(dtype):
        raise ValueError(f"the packed values are of type {code}, not {dtype} as asked for")
    if (its_index, its_entries) != (index, entries):
        raise ValueError(
            f"the packed update is that of array {its_index} with {its_entries} entries, not of "
            f"array {index} with {entries}"
        )
    return scale, float(torch.tensor(bits, dtype=_SIGNED[value.itemsize]).view(value))


def _read_through(payload: Bytes, values_at: int, size: int) -> tuple[int, int]:
    """Read a payload once, a part at a time that stays in the cache.

    Returns the CRC-32 of everything but itself, and the bits of the largest magnitude among the
    values of `size` bytes: but for the sign's they are in the order of magnitudes, with infinity
    and NaN behind them all.
    """
    crc = zlib.crc32(payload[:_CHECKSUM_AT].data)
    crc = zlib.crc32(payload[_HEADER.size : values_at].data, crc)
    bits = 0
    for first in range(values_at, payload.size, _CHECKED * size):
        part = payload[first : first + _CHECKED * size]
        crc = zlib.crc32(part.data, crc)
        whole = part[: part.size // size * size]
        if whole.size:
            # Its sign, the highest bit, is shifted out.
            bits = max(bits, int((whole.view(f"u{size}") << 1).max()) >> 1)
    return crc, bits


def _ones_before_steps(bits: Bytes) -> npt.NDArray[np.int64]:
    """Count the ones before every 1024th bit, and before the end."""
    size = _STEP // 8
    padded = np.zeros((1 + -(-len(bits) // size)) * size, dtype=np.uint8)
    padded[size : size + len(bits)] = bits
    words = np.bitwise_count(padded.view(np.uint64)).reshape(-1, _STEP // 64)
    counts: npt.NDArray[np.int64] = words.sum(axis=1, dtype=np.int64).cumsum()
    return counts


def _scale_of(largest: float, dtype: str) -> float:
    """Return the power of two that brings the largest magnitude of float16 values into [1, 2)."""
    if dtype != "float16" or largest == 0.0:
        return 1.0
    # float32 holds the scale; beyond its range the values are float64's own and stay unscaled.
    return math.ldexp(1.0, max(-126, min(127, math.frexp(largest)[1] - 1)))
