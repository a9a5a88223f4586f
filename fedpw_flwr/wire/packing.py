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

__all__ = [
    "MOST_ENTRIES",
    "UPLOAD_DTYPES",
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


def packed_size(entries: int, kept: int, dtype: str) -> int:
    """Return the bytes that a packed update of `entries` entries with `kept` values takes."""
    return _HEADER.size + (entries + 7) // 8 + kept * UPLOAD_DTYPES[dtype].itemsize


def pack_update(update: Tensor, dtype: str, place: int = 0) -> npt.NDArray[np.uint8]:
    """Pack one flat update; entries that are 0 travel as a bit only.

    Parameters
    ----------
    update : Tensor
        Δ̃_k of one tensor, flat, floating, on the CPU, every entry finite. Not modified.
    dtype : str
        Type of the values on the way: "float32", "float16" or "bfloat16".
    place : int (default: 0)
        Place of the array in the model.

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
    bits = np.packbits(kept_entries)
    payload = np.empty(packed_size(len(entries), len(kept), dtype), dtype=np.uint8)
    code = list(UPLOAD_DTYPES).index(dtype)
    _HEADER.pack_into(payload.data, 0, _MARK, code, scale, place, len(entries), 0)
    payload[_HEADER.size : _HEADER.size + len(bits)] = bits
    if len(kept):
        payload[_HEADER.size + len(bits) :] = values.view(torch.uint8).numpy()
    payload[_CHECKSUM] = _checksum(payload)
    return payload


def unpack_update(
    payload: npt.NDArray[np.uint8],
    entries: int,
    dtype: str,
    most_kept: int | None = None,
    place: int = 0,
) -> Tensor:
    """Unpack one flat update.

    Parameters
    ----------
    payload : NDArray[np.uint8]
        What `pack_update` returned, shape (bytes,).
    entries : int
        Number of entries of the tensor it belongs to.
    dtype : str
        The type of values that was asked for.
    most_kept : int | None (default: None)
        Entries that the drop rate leaves; None where any number will do.
    place : int (default: 0)
        Place of the array in the model.

    Returns
    -------
    Tensor
        The update, float32, shape (entries,).

    Raises
    ------
    ValueError
        If the payload is not that of this array in this type, contradicts itself, or holds values
        that are not finite.
    """
    bytes_of_bits = (entries + 7) // 8
    if payload.dtype != np.uint8 or payload.ndim != 1:
        raise ValueError(
            f"a packed update is one row of bytes, not {payload.dtype} {payload.shape}"
        )
    if payload.size < _HEADER.size + bytes_of_bits:
        raise ValueError(
            f"{payload.size} bytes are too few for a packed update of {entries} entries"
        )
    mark, code, scale, its_place, its_entries, _ = _HEADER.unpack_from(payload.data)
    if mark != _MARK:
        raise ValueError(f"a packed update begins with {_MARK!r}, not {mark!r}")
    if not np.array_equal(payload[_CHECKSUM], _checksum(payload)):
        raise ValueError("the checksum of the packed update does not agree with its content")
    if code != list(UPLOAD_DTYPES).index(dtype):
        raise ValueError(f"the packed values are of type {code}, not {dtype} as asked for")
    if (its_place, its_entries) != (place, entries):
        raise ValueError(
            f"the packed update is that of array {its_place} with {its_entries} entries, not of "
            f"array {place} with {entries}"
        )
    bits = payload[_HEADER.size : _HEADER.size + bytes_of_bits]
    unpacked = np.unpackbits(bits)
    if unpacked[entries:].any():
        raise ValueError(f"the bit mask has bits behind its {entries} entries")
    kept = np.flatnonzero(unpacked[:entries])
    if payload.size != packed_size(entries, len(kept), dtype):
        raise ValueError(
            f"the bit mask keeps {len(kept)} of {entries} entries, which does not agree with the "
            f"{payload.size} bytes of the payload"
        )
    if most_kept is not None and len(kept) > most_kept:
        raise ValueError(
            f"the bit mask keeps {len(kept)} of {entries} entries, the drop rate leaves {most_kept}"
        )
    # A copy, because values behind a mask of odd length are not aligned.
    raw = payload[_HEADER.size + bytes_of_bits :].copy()
    values = torch.zeros(0)
    if len(kept):
        values = torch.from_numpy(raw).view(UPLOAD_DTYPES[dtype]).float()
    largest = float(values.abs().max()) if len(kept) else 0.0
    if not largest * scale <= torch.finfo(torch.float32).max:
        raise ValueError("the packed values are not finite")
    if not _is_scale_of(scale, largest, dtype):
        raise ValueError(f"the packed values, up to {largest}, cannot have the scale {scale}")
    if scale != 1.0:
        values.mul_(scale)
    update = np.zeros(entries, dtype=np.float32)
    update[kept] = values.numpy()
    return torch.from_numpy(update)


def _checksum(payload: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the bytes of the CRC-32 of everything but themselves."""
    head = zlib.crc32(payload[: _CHECKSUM.start].data)
    body = zlib.crc32(payload[_CHECKSUM.stop :].data, head)
    return np.frombuffer(struct.pack("<I", body), dtype=np.uint8)


def _float16_scale(values: Tensor) -> float:
    """Return the power of two that brings the largest magnitude into [1, 2)."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest == 0.0:
        return 1.0
    # float32 holds the scale; beyond its range the values are float64's own and stay unscaled.
    return math.ldexp(1.0, max(-126, min(127, math.frexp(largest)[1] - 1)))


def _is_scale_of(scale: float, largest: float, dtype: str) -> bool:
    """Say whether packing would have chosen this scale for values of this largest magnitude."""
    if dtype != "float16" or largest == 0.0:
        return scale == 1.0
    if not math.isfinite(scale) or scale <= 0 or math.frexp(scale)[0] != 0.5:
        return False
    at_the_end = scale == math.ldexp(1.0, -126)
    return (largest >= 1.0 or at_the_end) and largest <= 2.0
