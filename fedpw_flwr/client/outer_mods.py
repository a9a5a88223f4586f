"""Mods in front of FedPW on a client that cannot take what it returns.

A mod knows nothing of the others, but those in front of it are waiting on the stack.
"""

from __future__ import annotations

import sys
from typing import Any

from flwr.client import mod as legacy
from flwr.clientapp import mod as message

from fedpw_flwr.wire.adjustment import HIDES_UPDATES, NEEDS_DENSE

__all__ = ["is_inside_local_dp", "refuse_outer_mods"]

_NEED_DENSE = {
    mod.__code__: name
    for name, mod in (
        ("fixedclipping_mod", message.fixedclipping_mod),
        ("adaptiveclipping_mod", message.adaptiveclipping_mod),
        ("LocalDpMod", message.LocalDpMod.__call__),
        ("fixedclipping_mod", legacy.fixedclipping_mod),
        ("adaptiveclipping_mod", legacy.adaptiveclipping_mod),
        ("LocalDpMod", legacy.LocalDpMod.__call__),
    )
}
_HIDE_UPDATES = {legacy.secagg_mod.__code__, legacy.secaggplus_mod.__code__}


def refuse_outer_mods(*, packed: bool) -> None:
    """Look at the mods through which the caller was called: they get what it returns.

    Parameters
    ----------
    packed : bool
        Whether the update will be packed.

    Raises
    ------
    ValueError
        If one of them hides the individual updates, or needs the arrays of an update that will be
        packed.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _HIDE_UPDATES:
            raise ValueError(
                f"secagg_mod or secaggplus_mod {HIDES_UPDATES}: use FedPW without secure "
                "aggregation, and take the mod out of every client's ClientApp(mods=[...])"
            )
        if packed and frame.f_code in _NEED_DENSE:
            raise ValueError(
                f'{_NEED_DENSE[frame.f_code]} {NEEDS_DENSE}: use FedPW(upload="dense") with it'
            )
        frame = frame.f_back


def is_inside_local_dp() -> bool:
    """Return True where the caller was called through `LocalDpMod`.

    It noises the arrays and nothing else. What FedPW reports beside them would be told as it is, so
    such an update is sent as trained, and the server adjusts it.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        if _NEED_DENSE.get(frame.f_code) == "LocalDpMod":
            return True
        frame = frame.f_back
    return False
