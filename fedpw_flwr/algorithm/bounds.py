"""How far one client can move a round by what it reports (beyond the paper).

A loss is the client's own word, and AWA gives weight to large ones while PA drops less of an update
the smaller the others' quotients are. So losses count within a factor of the round's median, and no
weight is larger than a multiple of the equal share 1/N. The defaults are beyond what honest clients
of the experiments reach; one that is served worse than tenfold gets less than it would.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LOSS_FLOOR = 1e-3
"""Losses enter quotients at no less than this share of the round's mean."""


def bounded_losses(losses: Tensor, max_ratio: float | None) -> Tensor:
    """Bring losses into [median / max_ratio, median · max_ratio] of the round's median.

    ℓ_k ≥ 0, shape (N,), come back as they are where `max_ratio` is None, or the median says nothing
    about them: of two clients, or where it is 0, or so large or small that the bounds are not
    finite and positive.
    """
    if max_ratio is None or losses.numel() < 3:
        return losses
    median = float(torch.quantile(losses, 0.5))
    least, most = median / max_ratio, median * max_ratio
    if not 0.0 < least <= most < float("inf"):
        return losses
    return losses.clamp(least, most)


def floored_losses(losses: Tensor) -> Tensor:
    """Raise losses to at least 1e-3 of their mean, so that a quotient by one stays bounded.

    ℓ_k ≥ 0, shape (N,), come back positive, scaled by the largest (only ratios matter); all ones
    where every loss is zero.
    """
    largest = losses.max()
    if largest <= 0:
        return torch.ones_like(losses)
    scaled = losses / largest
    return scaled.clamp(min=LOSS_FLOOR * float(scaled.mean()))


def bounded_weights(weights: Sequence[float], max_weight: float | None) -> tuple[float, ...]:
    """Let no weight be larger than `max_weight` / N; the others share what is taken in proportion.

    Returns min(t · λ_k, max_weight / N) with the t ≥ 1 for which the sum stays 1: those below the
    bound keep their ratios, and who has no weight gets none. Where the others have none at all,
    they share equally. A negative weight (`clip_weights` switched off) stays what it is, and None
    bounds nothing.
    """
    count = len(weights)
    if max_weight is None or max(weights) * count <= max_weight:
        return tuple(weights)
    most = max_weight / count
    order = sorted(range(count), key=weights.__getitem__)
    # With the j largest at the bound, the others grow; the first j that leaves them below.
    for at_bound in range(1, count):
        below = [weights[client] for client in order[: count - at_bound]]
        left = max(0.0, 1.0 - at_bound * most - sum(below))
        positive = sum(weight for weight in below if weight > 0.0)
        if positive > 0.0:
            # A share first: what is left over a tiny weight would not be finite.
            grown = [
                weight / positive * (positive + left) if weight > 0.0 else weight
                for weight in below
            ]
        else:
            grown = [weight + left / len(below) for weight in below]
        if grown[-1] <= most * (1.0 + 1e-15):
            bounded = dict(zip(order, [*grown, *[most] * at_bound], strict=True))
            return tuple(min(bounded[client], most) for client in range(count))
    return (1.0 / count,) * count
