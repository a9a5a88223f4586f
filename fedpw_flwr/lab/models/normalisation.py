"""Which layer keeps a network's activations in scale: a choice that matters in federated learning.

BatchNorm's running statistics are averaged over clients like weights, and describe no client whose
images look different. GroupNorm has none: it looks at one image at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import Literal

from torch import nn

Normalisation = Literal["batch", "group", "none"]


def groups_of(channels: int) -> int:
    """Return the number of GroupNorm's groups for so many channels.

    32 as in Wu and He (Group Normalization, ECCV 2018); fewer, a power of two, where 32 does not
    divide the channels or would leave a single one to a group: 8 groups of 16 channels.
    """
    groups = gcd(channels, 32)
    return groups if groups < channels else max(1, channels // 2)


_LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(groups_of(channels), channels),
    "none": lambda channels: nn.Identity(),
}


def normalisation_layer(normalisation: Normalisation) -> Callable[[int], nn.Module]:
    """Return what builds BatchNorm, GroupNorm, or nothing, for a number of channels."""
    if normalisation not in _LAYERS:
        raise ValueError(f"normalisation={normalisation!r}: choose one of {', '.join(_LAYERS)}")
    return _LAYERS[normalisation]
