"""A lost machine of a Ray cluster ends the run; a client that fails by itself does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAvg

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


@pytest.mark.parametrize("phase", ["aggregate_train", "aggregate_evaluate"])
def test_a_lost_machine_ends_the_run_and_the_message_says_how_to_go_on(phase: str) -> None:
    strategy = MachineWatch(FedAvg(), Path("/runs/mine"))
    replies = [failure(LOST), failure("out of disk"), failure(LOST)]
    with pytest.raises(LostMachineError, match=r"round 4 it took 2 of 3 .*resume=/runs/mine"):
        getattr(strategy, phase)(4, replies)


@pytest.mark.parametrize("phase", ["aggregate_train", "aggregate_evaluate"])
def test_clients_that_fail_by_themselves_are_the_strategys_to_judge(phase: str) -> None:
    replies = [failure("out of disk"), failure(DIED_ALONE)]
    watched = getattr(MachineWatch(FedAvg(), Path("/runs/mine")), phase)(4, replies)
    assert watched == getattr(FedAvg(), phase)(4, replies)
