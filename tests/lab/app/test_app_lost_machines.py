"""A lost machine of a Ray cluster ends the run; a client that fails by itself does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedpw_flwr.lab.app.lost_machines import LostMachineError, MachineWatch

LOST = (
    "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly before finishing this "
    "task.\n\tclass_name: ClientAppActor\nThe actor died because its node has died. Node Id: 1'>"
)
DIED_ALONE = (
    "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly before finishing this "
    "task.\nThe actor is dead because its worker process has died.'>"
)


def failure(reason: str) -> Message:
    asked = Message(RecordDict(), 5, "train")
    return Message(Error(code=ErrorCode.UNKNOWN, reason=reason), reply_to=asked)


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_a_lost_machine_ends_the_run_and_the_message_says_how_to_go_on(phase: str) -> None:
    replies = [failure(LOST), failure("out of disk"), failure(LOST)]
    with pytest.raises(LostMachineError, match=r"round 4 it took 2 of 3 .*resume=/runs/mine"):
        MachineWatch(Path("/runs/mine")).on_replies(phase, 4, replies)


def test_clients_that_fail_by_themselves_are_the_strategys_to_judge() -> None:
    replies = [failure("out of disk"), failure(DIED_ALONE)]
    MachineWatch(Path("/runs/mine")).on_replies("train", 4, replies)
