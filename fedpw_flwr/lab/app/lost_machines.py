"""A run on a Ray cluster stops where the cluster has lost a machine, to be gone on with.

Flower puts the workers of a lost machine back among the free ones. They are free again at once, so
that they take and fail most of the messages of all rounds to come, and the workers that live get
the few that are left: the run would end well and have trained next to nothing. Started anew from
its checkpoint, it has only workers that live.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flwr.app import Message

from fedpw_flwr.rounds.observers import Observer

__all__ = ["LostMachineError", "MachineWatch"]

_DIED, _LOST = "ActorDiedError", "its node has died"
"""Ray's words for a worker that died with its machine, in the reason of a client's failure."""


class LostMachineError(RuntimeError):
    """The Ray cluster lost a machine; the message says how to go on."""


class MachineWatch(Observer):
    """Ends a run where the Ray cluster has lost a machine.

    Parameters
    ----------
    folder : Path
        Folder of the run, for the message.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_replies(self, phase: str, server_round: int, replies: Sequence[Message]) -> None:
        """Look for clients that failed because their machine is gone.

        Raises
        ------
        LostMachineError
            If there is one.
        """
        reasons = [reply.error.reason or "" for reply in replies if reply.has_error()]
        lost = sum(_DIED in reason and _LOST in reason for reason in reasons)
        if lost:
            raise LostMachineError(
                f"the Ray cluster lost a machine; in round {server_round} it took {lost} of "
                f"{len(replies)} replies with it. Go on with the machines that are there: "
                f"fedpw resume={self._folder}"
            )
