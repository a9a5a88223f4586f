"""In which numbers a network computes: all float32, or its products in bfloat16."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    # The command checks settings before anything heavy is imported.
    import torch

__all__ = ["PRECISIONS", "Precision", "arithmetic"]

Precision = Literal["float32", "bfloat16"]

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a network's forward pass and its loss are computed.

    Parameters
    ----------
    precision : "float32" | "bfloat16"
        "bfloat16" is PyTorch's mixed precision: convolutions and linear layers in bfloat16, sums
        that need more digits in float32. Weights, gradients and SGD's buffers stay float32, so what
        a client sends does not change its type. Fast on GPUs, and on CPUs that multiply bfloat16
        themselves (avx512_bf16, AMX); on others correct and slow.
    device : torch.device
        Where the network is.
    """
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
