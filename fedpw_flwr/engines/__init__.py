"""How a server step is computed fast: engines for `fedpw_flwr.algorithm.server_step`.

Each does what `fedpw_flwr.algorithm.reference` does, to rounding. That one stands with the method:
it is the method's second section in code, and a step needs no other.
"""

from __future__ import annotations

from functools import partial

import torch

from fedpw_flwr.algorithm.engine import StartEngine
from fedpw_flwr.algorithm.reference import Reference
from fedpw_flwr.engines.cpu import CpuEngine

__all__ = ["CpuEngine", "engine_for"]


def engine_for(device: torch.device | str) -> StartEngine:
    """Return what computes a server step on a device: blocks on the CPU, else the reference."""
    if torch.device(device).type == "cpu":
        return CpuEngine
    return partial(Reference, device=device)
