"""Replies that are finite each, and together make a model no next round could begin with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from fedpw_flwr.rounds.faults import BadReply
from fedpw_flwr.rounds.screening import TrainReply, check_finite

__all__ = ["step_without_overgrown", "too_large"]

Step = TypeVar("Step")


def step_without_overgrown(
    replies: Sequence[TrainReply],
    global_model: Mapping[str, Tensor],
    attempt: Callable[[Sequence[TrainReply]], tuple[Step, str | None]],
) -> tuple[Step | None, list[TrainReply], list[BadReply]]:
    """Aggregate; where a tensor comes out too large, again without its largest update.

    Parameters
    ----------
    replies : Sequence[TrainReply]
        The usable replies.
    global_model : Mapping[str, Tensor]
        What the updates are measured from.
    attempt : Callable[[Sequence[TrainReply]], tuple[Step, str | None]]
        Aggregates replies, and names the first tensor that is too large; None where none is.

    Returns
    -------
    tuple[Step | None, list[TrainReply], list[BadReply]]
        What `attempt` made (None where nothing is left), the replies in it, and those set aside.
    """
    good = list(replies)
    bad: list[BadReply] = []
    while good:
        step, name = attempt(good)
        if name is None:
            return step, good, bad
        start = global_model[name].double()
        largest = max(good, key=lambda reply: float((reply.result.tensors[name] - start).norm()))
        reason = f"with it, tensor {name!r} of the next model would be too large to go on from"
        bad.append(BadReply(largest.node_id, largest.client, reason))
        good = [reply for reply in good if reply is not largest]
    return None, [], bad


def too_large(name: str, tensor: Tensor) -> bool:
    """Return whether an array holds what no round could begin with."""
    try:
        check_finite(name, tensor)
    except ValueError:
        return True
    return False
