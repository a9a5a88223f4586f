"""From a trained model to what the client sends: the part that both edges to Flower share.

`FedPWClient` and `fedpw_mod` only take their records apart and put them together again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedpw_flwr.algorithm.client_step import adjust_tensor, is_adjustable, subtract_update
from fedpw_flwr.algorithm.tensors import is_nonnegative
from fedpw_flwr.wire.adjustment import (
    CONSENSUS_KEY,
    REQUEST_KEY,
    AdjustmentReport,
    AdjustmentRequest,
    consensus_members,
)
from fedpw_flwr.wire.arrays import in_dtype, view_tensor
from fedpw_flwr.wire.packing import MOST_ENTRIES, pack_update, packed_size

__all__ = ["ReceivedRequest", "adjust_reply", "take_request"]

NDArrays = list[npt.NDArray[Any]]


@dataclass(frozen=True)
class ReceivedRequest:
    """The server's request as it came: what to do, and the bits of the consensus sets."""

    request: AdjustmentRequest
    consensus: object

    @property
    def is_first(self) -> bool:
        """Whether no round was aggregated yet: then a client may keep arrays to itself."""
        return self.request.rate == 0 and self.request.consensus_round is None


def take_request(config: Mapping[str, Any]) -> tuple[dict[str, Any], ReceivedRequest | None]:
    """Separate FedPW's entries of a configuration from those of the user.

    Returns
    -------
    tuple[dict[str, Any], ReceivedRequest | None]
        The configuration without FedPW's entries, and the request; None where the server asks for
        nothing.

    Raises
    ------
    ValueError
        If the request cannot be read.
    """
    plain = {key: value for key, value in config.items() if key not in (REQUEST_KEY, CONSENSUS_KEY)}
    if REQUEST_KEY not in config:
        return plain, None
    request = AdjustmentRequest.decode(config[REQUEST_KEY])
    return plain, ReceivedRequest(request, config.get(CONSENSUS_KEY))


def adjust_reply(
    global_arrays: Sequence[npt.NDArray[Any]],
    trained: Sequence[npt.NDArray[Any]],
    received: ReceivedRequest,
    device: torch.device | str,
    trainable: Sequence[int] | None = None,
) -> tuple[NDArrays, bytes | None]:
    """Mask, rescale and, where asked, pack a client's update.

    Parameters
    ----------
    global_arrays, trained : Sequence[NDArray]
        w and w_k, in the server's order. Not modified. Floating w_k are cast to the dtypes of w. As
        long as no round was aggregated, w_k may have fewer arrays, the first ones.
    received : ReceivedRequest
        The server's request.
    device : torch.device | str
        Where the arithmetic runs.
    trainable : Sequence[int] | None (default: None)
        Places of the trainable arrays, for the report; None where the client was not told.

    Returns
    -------
    tuple[NDArrays, bytes | None]
        w − Δ̃_k, the same shapes and dtypes (packed arrays: rows of bytes), and the report. The
        arrays as trained and None where the server has to adjust them itself (masking would leave
        an update of zeros, by whose norm Flower's clipping divides) or to judge them: training
        diverged, or `trained` has another number of arrays than w, other shapes or other dtypes.

    Raises
    ------
    ValueError
        If the request does not fit the model, or a place in `trainable` is not there.
    """
    alike = _alike(global_arrays, trained, received)
    if alike is None:
        return list(trained), None
    global_arrays, trained = alike
    _check_places(trainable, trained)
    request = received.request
    members = consensus_members(request, received.consensus, [a.size for a in global_arrays])
    discarded = [0.0] * len(trained)
    norms = [0.0] * len(trained)
    sent: NDArrays = []
    packed: list[int] = []
    moved = False
    for place, (start, end) in enumerate(zip(global_arrays, trained, strict=True)):
        before, after = _tensor(start), _tensor(end)
        if before is None or after is None or not is_adjustable(before):
            sent.append(end)
            moved = moved or not np.array_equal(start, end)
            continue
        untouched = request.rate == 0 and place not in members
        exact = request.upload == "dense" or request.upload_dtype == "float32"
        if untouched and exact:
            sent.append(end)
            moved = True
            continue
        update, magnitude = adjust_tensor(
            before,
            after,
            request.rate,
            members.get(place),
            request.factors.get(place, 1.0),
            device,
            keep_sign=request.keep_sign,
        )
        norms[place] = float(torch.linalg.vector_norm(update))
        if not math.isfinite(norms[place] + float(magnitude)):
            # Training has diverged: the server says so.
            return list(trained), None
        discarded[place] = float(magnitude)
        moved = moved or bool(update.any())
        payload = None
        if request.upload == "packed":
            payload = _packed(update, before, after, place, request)
        if payload is not None:
            packed.append(place)
            sent.append(payload)
        else:
            sent.append(end if untouched else subtract_update(before, update).numpy())
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
    update: torch.Tensor,
    start: torch.Tensor,
    trained: torch.Tensor,
    place: int,
    request: AdjustmentRequest,
) -> npt.NDArray[np.uint8] | None:
    """Pack an update; None where the array itself is no larger."""
    kept = int(torch.count_nonzero(update))
    size = packed_size(start.numel(), kept, request.upload_dtype)
    if size >= start.nbytes or start.numel() > MOST_ENTRIES:
        return None
    stays = request.keep_sign and is_nonnegative(start) and is_nonnegative(trained)
    most = start.reshape(-1).to(update.dtype) if stays else None
    return pack_update(update.cpu(), request.upload_dtype, place, most)


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor | None:
    """View an array as a tensor; None for dtypes that are not floating or unknown to PyTorch."""
    if not np.issubdtype(array.dtype, np.floating):
        return None
    try:
        return view_tensor(array if array.flags.c_contiguous else array.copy(order="C"))
    except TypeError:
        return None


def _alike(
    global_arrays: Sequence[npt.NDArray[Any]],
    trained: Sequence[npt.NDArray[Any]],
    received: ReceivedRequest,
) -> tuple[NDArrays, NDArrays] | None:
    """Return w and w_k in the same dtypes, without the arrays that the client keeps to itself.

    None where w_k is another model than w.
    """
    kept_back = received.is_first and 0 < len(trained) < len(global_arrays)
    if len(trained) != len(global_arrays) and not kept_back:
        return None
    before = [in_dtype(start, start.dtype) for start in global_arrays[: len(trained)]]
    after = [in_dtype(end, start.dtype) for start, end in zip(before, trained, strict=True)]
    alike = all(
        start.shape == end.shape and start.dtype == end.dtype
        for start, end in zip(before, after, strict=True)
    )
    return (before, after) if alike else None


def _check_places(trainable: Sequence[int] | None, trained: Sequence[npt.NDArray[Any]]) -> None:
    for place in trainable or ():
        if not 0 <= place < len(trained):
            raise ValueError(
                f"trainable names array {place}, but the model has {len(trained)} arrays, counted "
                "from 0"
            )
        if not np.issubdtype(trained[place].dtype, np.floating):
            raise ValueError(f"trainable names array {place}, which is {trained[place].dtype}")
