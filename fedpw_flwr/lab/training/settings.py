"""How a client trains; importable without PyTorch. `CLIENT` in `setting_rules` has the ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class ClientSettings:
    """Settings of local training with SGD; the defaults are the paper's for digits.

    Parameters
    ----------
    epochs : int (default: 10)
        Passes over the client's images a round.
    batch_size : int (default: 64)
        Images a step. A last batch of one image is joined to the one before.
    learning_rate : float (default: 0.001)
        SGD's step.
    momentum : float (default: 0.9)
        In [0, 1); its buffers start empty in each round.
    weight_decay : float (default: 1e-5)
        L2 penalty, as SGD's own option.
    crop_padding : int (default: 4)
        Black pixels added on each side before a random crop of the original size; 0 turns cropping
        off.
    precision : "float32" | "bfloat16" (default: "float32")
        In which numbers the network computes while it trains. "bfloat16" is PyTorch's mixed
        precision: products in bfloat16; weights, gradients and SGD's buffers stay float32. Fast on
        GPUs, and on CPUs that multiply bfloat16 themselves (avx512_bf16, AMX); on others slow.
    compile : bool (default: False)
        Compile the network with ``torch.compile``: faster steps after a first one that takes tens
        of seconds in each worker. On a CPU it needs a C++ compiler.
    horizontal_flip : bool (default: False)
        Mirror each training image with probability 1/2: right for photographs, wrong for digits.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 1e-5
    crop_padding: int = 4
    precision: Precision = "float32"
    compile: bool = False
    horizontal_flip: bool = False
