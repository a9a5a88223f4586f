"""From a trained model to what the client sends: mask the update, rescale it, pack it.

`FedPWClient` and `fedpw_mod` only take their records apart and put them together again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.common import NDArrays
from torch import Tensor

from fedpw_flwr.algorithm.client_step import adjust_tensor, is_adjustable, subtract_update
from fedpw_flwr.algorithm.tensors import is_nonnegative
from fedpw_flwr.client.request import ReceivedRequest
from fedpw_flwr.wire.adjustment import AdjustmentReport, AdjustmentRequest, consensus_members
from fedpw_flwr.wire.arrays import in_dtype
from fedpw_flwr.wire.packing import MOST_ENTRIES, pack_update, packed_size

Arrays = Sequence[npt.NDArray[Any]]


def adjust_reply(
    global_arrays: Arrays,
    trained: Arrays,
    received: ReceivedRequest,
    device: torch.device | str,
    trainable: Sequence[int] | None = None,
) -> tuple[NDArrays, bytes | None]:
    """Mask, rescale and, where asked, pack a client's update; w and w_k are not modified.

    `trainable` are indices of arrays, for the report; None where the client was not told. Returns
    w − Δ̃_k in the shapes and dtypes of w (packed arrays: rows of bytes), and the report; the arrays
    as trained and None where the server has to adjust them itself (masking would leave an update of
    zeros, by whose norm Flower's clipping divides) or to judge them: training diverged, or w_k is
    another model than w. ValueError if the request does not fit the model, or an array in
    `trainable` is not there.
    """
    alike = _alike(global_arrays, trained, received)
    if alike is None:
        return list(trained), None
    global_arrays, trained = alike
    _check_trainable(trainable, trained)
    request = received.request
    members = consensus_members(request, received.consensus, [w.size for w in global_arrays])
    sent, packed = list(trained), []
    discarded, norms = [0.0] * len(sent), [0.0] * len(sent)
    moved = False
    for index, (start, end) in enumerate(zip(global_arrays, trained, strict=True)):
        # What is never adjusted, or has to be neither adjusted nor packed, goes as trained.
        before, after = _tensor(start), _tensor(end)
        if before is None or after is None or not is_adjustable(before):
            moved = moved or not np.array_equal(start, end)
            continue
        as_trained = request.rate == 0 and index not in members
        if as_trained and (request.upload == "dense" or request.upload_dtype == "float32"):
            moved = True
            continue

        # Mask and rescale.
        consensus = members.get(index), request.factors.get(index, 1.0)
        update, magnitude = adjust_tensor(
            before, after, request.rate, *consensus, device, keep_sign=request.keep_sign
        )
        discarded[index] = float(magnitude)
        norms[index] = float(torch.linalg.vector_norm(update))
        if not math.isfinite(norms[index] + discarded[index]):
            # Training has diverged: the server says so.
            return list(trained), None
        moved = moved or bool(update.any())

        # Pack, where that saves bytes.
        payload = None
        if request.upload == "packed":
            payload = _packed(update, before, after, index, request)
        if payload is not None:
            packed.append(index)
            sent[index] = payload
        elif not as_trained:
            sent[index] = subtract_update(before, update).numpy()
    if request.upload == "dense" and not moved:
        return list(trained), None
    report = AdjustmentReport(
        rate=request.rate,
        consensus_round=request.consensus_round,
        discarded=tuple(discarded),
        packed=tuple(packed),
        norms=tuple(norms) if any(norms) else (),
        trainable=None if trainable is None else tuple(trainable),
    )
    return sent, report.encode()


def _packed(
    update: Tensor, start: Tensor, trained: Tensor, index: int, request: AdjustmentRequest
) -> npt.NDArray[np.uint8] | None:
    """Pack an update; None where the array itself is no larger."""
    kept = int(torch.count_nonzero(update))
    size = packed_size(start.numel(), kept, request.upload_dtype)
    if size >= start.nbytes or start.numel() > MOST_ENTRIES:
        return None
    stays = request.keep_sign and is_nonnegative(start) and is_nonnegative(trained)
    most = start.reshape(-1).to(update.dtype) if stays else None
    return pack_update(update.cpu(), request.upload_dtype, index, most)


def _tensor(array: npt.NDArray[Any]) -> Tensor | None:
    """View an array as a tensor; None for dtypes that PyTorch does not know."""
    try:
        return torch.from_numpy(array if array.flags.c_contiguous else array.copy(order="C"))
    except TypeError:
        return None


def _alike(
    global_arrays: Arrays, trained: Arrays, received: ReceivedRequest
) -> tuple[NDArrays, NDArrays] | None:
    """Return w and w_k in the same dtypes; None where w_k is another model than w.

    As long as no round was aggregated, a client may keep arrays to itself: the last ones.
    """
    kept_back = received.is_first and 0 < len(trained) < len(global_arrays)
    if len(trained) != len(global_arrays) and not kept_back:
        return None
    before = [in_dtype(start, start.dtype) for start in global_arrays[: len(trained)]]
    after = [in_dtype(end, start.dtype) for start, end in zip(before, trained, strict=True)]
    pairs = zip(before, after, strict=True)
    if any((start.shape, start.dtype) != (end.shape, end.dtype) for start, end in pairs):
        return None
    return before, after


def _check_trainable(trainable: Sequence[int] | None, trained: NDArrays) -> None:
    for index in trainable or ():
        if not 0 <= index < len(trained):
            raise ValueError(
                f"trainable names array {index}, but the model has {len(trained)} arrays, counted "
                "from 0"
            )
        if not np.issubdtype(trained[index].dtype, np.floating):
            raise ValueError(f"trainable names array {index}, which is {trained[index].dtype}")
