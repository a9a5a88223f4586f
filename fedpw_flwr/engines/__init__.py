"""How a server step is computed fast, in place of `fedpw_flwr.algorithm.reference`.

Both give the same, to rounding. The reference stands with the method and needs nothing; what is
here needs Numba, which compiles its loops.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial

import torch
from torch import Tensor

from fedpw_flwr.algorithm.cohort import Cohort
from fedpw_flwr.algorithm.engine import Engine, StartEngine
from fedpw_flwr.algorithm.reference import Reference
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
    return _blocks()[1]


def _on_cpu(
    global_model: Mapping[str, Tensor], kinds: Mapping[str, TensorKind], cohort: Cohort
) -> Engine:
    entries = sum(tensor.numel() for tensor in global_model.values())
    is_large = entries * len(cohort.results) >= _WORTH_COMPILING
    start = _blocks()[0] if is_large else Reference
    return start(global_model, kinds, cohort)


@cache
def _blocks() -> tuple[StartEngine, str]:
    """Return the engine of large models, and why it is the reference."""
    try:
        from fedpw_flwr.engines.cpu import CpuEngine
    except ModuleNotFoundError:
        return Reference, "numba is not installed"
    except (ImportError, OSError) as error:
        return Reference, f"numba cannot be used ({error})"
    return CpuEngine, ""
