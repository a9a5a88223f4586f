"""Fewer test pictures, always the same ones: cheap evaluation that is comparable between runs."""

from __future__ import annotations

import torch

from fedpw_flwr.lab.data.images import ImageSet

_SUBSET_SEED = 0


def at_most(pictures: ImageSet, limit: int | None) -> ImageSet:
    """Return `pictures`, or `limit` of them drawn at random without replacement if there are more.

    The draw is a constant of the data, not of a run: it does not depend on the experiment's seed.

    Parameters
    ----------
    pictures : ImageSet
        N pictures in any order, sorted by class for instance.
    limit : int or None
        At least 1; None keeps all.

    Raises
    ------
    ValueError
        If `limit` is less than 1.
    """
    if limit is None:
        return pictures
    if limit < 1:
        raise ValueError(f"a limit on the number of pictures must be at least 1, got {limit}")
    if len(pictures) <= limit:
        return pictures
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(_SUBSET_SEED))
    return pictures.select(order[:limit].sort().values)
