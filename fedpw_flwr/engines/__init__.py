"""How a server step is computed fast, in place of `fedpw_flwr.algorithm.reference`.

Both give the same, to rounding. The reference stands with the method and needs nothing; what is
here needs Numba, which compiles its loops.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache, partial
from importlib.util import find_spec

import torch
from torch import Tensor

from fedpw_flwr.algorithm.reference import Cohort, Reference, StartEngine
from fedpw_flwr.algorithm.tensors import TensorKind

__all__ = ["engine_for", "why_not_compiled"]

_WORTH_COMPILING = 1 << 24
"""Entries of all updates of a round that the reference takes a quarter of a second for.

To load compiled code takes a second, and to compile it, where that was not kept, four.
"""


def engine_for(device: torch.device | str) -> StartEngine:
    """Return what computes a server step on a device: in blocks on the CPU, else the reference."""
    if torch.device(device).type == "cpu":
        return _on_cpu
    return partial(Reference, device=device)


def why_not_compiled() -> str:
    """Return why no loop is compiled; empty where those of large models are."""
    # Numba itself takes a second to import, and 70 MB, which only large models are worth.
    return "" if find_spec("numba") is not None else "numba is not installed"


def _on_cpu(
    global_model: Mapping[str, Tensor], kinds: Mapping[str, TensorKind], cohort: Cohort
) -> Reference:
    entries = sum(tensor.numel() for tensor in global_model.values())
    is_large = entries * len(cohort.results) >= _WORTH_COMPILING
    start = _blocks() if is_large else Reference
    return start(global_model, kinds, cohort)


@cache
def _blocks() -> StartEngine:
    """Return the engine of large models: the reference where Numba is missing or broken."""
    if why_not_compiled():
        return Reference
    try:
        from fedpw_flwr.engines.cpu import CpuEngine
    except (ImportError, OSError) as error:
        logging.getLogger("flwr").warning(
            "numba cannot be used (%s): steps of large models are slower than they could be", error
        )
        return Reference
    return CpuEngine
