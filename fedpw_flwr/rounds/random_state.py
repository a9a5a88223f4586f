"""The random state of a process: Python's, NumPy's and PyTorch's global generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["restore_random_state", "saved_random_state"]


def saved_random_state() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the state of all generators, as JSON and as tensors."""
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    # Asking a GPU that is not in use would start it.
    devices = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    nested = {
        "python": [version, list(numbers), gauss],
        "numpy": [int(position), int(has_gauss), float(cached)],
        "cuda": devices,
    }
    tensors = {
        "random/numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "random/torch": torch.get_rng_state(),
    }
    for device in range(devices):
        tensors[f"random/cuda-{device}"] = torch.cuda.get_rng_state(device)
    return nested, tensors


def restore_random_state(nested: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Set all generators to a saved state; those of GPUs that are gone are left out."""
    version, numbers, gauss = nested["python"]
    random.setstate((version, tuple(numbers), gauss))
    position, has_gauss, cached = nested["numpy"]
    keys = tensors["random/numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, cached))
    torch.set_rng_state(tensors["random/torch"])
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device in range(min(here, nested["cuda"])):
        torch.cuda.set_rng_state(tensors[f"random/cuda-{device}"], device)
