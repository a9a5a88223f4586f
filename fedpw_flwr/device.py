"""Which device to compute on: the one asked for if it is really there, else CUDA or the CPU."""

from __future__ import annotations

import torch


def available_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device asked for; None takes CUDA when there is one.

    Raises
    ------
    ValueError
        If PyTorch does not know the device, or cannot compute on it here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        # Only a result that comes back tells whether the device is really there.
        torch.zeros(1, device=chosen).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={str(device)!r} cannot be used here ({reason}); use 'cpu'"
        ) from error
    return chosen
