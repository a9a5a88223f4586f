"""A run that goes on from a checkpoint ends with the bits of one that was never interrupted."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
from adjusting_clients import following
from federation import MODEL, evaluate_reply, good_client
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Result, Strategy
from support.grid import ClientsGrid
from support.records import array_record, payloads

from fedpw_flwr import FedPW
from fedpw_flwr.checkpoint import CheckpointError, CheckpointStore
from fedpw_flwr.rounds.loop import run_rounds

NODES = [11, 12, 13, 14, 15, 16]
ROUNDS = 5


class Killed(Exception):
    """Stands for a process that is killed: nothing after it is done."""


class Resumes(FedPW):
    """Flower's server optimizers pass on FedAvg's arguments only."""

    def set(self, device: str = "cpu", checkpoint_dir: Path | None = None, **options: Any) -> Self:
        if checkpoint_dir is not None:
            every = options.get("checkpoint_every", 1)
            self.checkpoints = CheckpointStore(checkpoint_dir, every=every)
        self.resume = options.get("resume", False)
        return self


class FedAdamPW(FedAdam, Resumes):
    pass


class FedAvgMPW(FedAvgM, Resumes):
    pass


Build = Callable[..., FedPW]
BUILDS: dict[str, Build] = {
    "server": FedPW,
    "client": lambda **options: FedPW(adjustment="client", **options),
    "packed": lambda **options: FedPW(adjustment="client", upload="packed", **options),
    "half": lambda **options: FedPW(fraction_train=0.5, **options),
    "adam": lambda **options: FedAdamPW().set(**options),
    "momentum": lambda **options: FedAvgMPW(server_momentum=0.9).set(**options),
}


def client(message: Message) -> list[Message]:
    if message.metadata.message_type == "train":
        return list(following()(message))
    return [evaluate_reply(message)]


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    total = sum(float(array.numpy().sum()) for array in arrays.values())
    return MetricRecord({"sum": total, "drawn": random.random()})


def run(strategy: Strategy, rounds: int = ROUNDS, killed_in: int | None = None) -> Result:
    def at_risk(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if server_round == killed_in:
            raise Killed
        return evaluate(server_round, arrays)

    return strategy.start(
        grid=ClientsGrid(dict.fromkeys(NODES, client)),
        initial_arrays=array_record(MODEL),
        num_rounds=rounds,
        train_config=ConfigRecord({"lr": 0.1}),
        evaluate_fn=at_risk,
    )


def everything(result: Result) -> object:
    metrics = [
        {server_round: dict(record) for server_round, record in records.items()}
        for records in (
            result.train_metrics_clientapp,
            result.evaluate_metrics_clientapp,
            result.evaluate_metrics_serverapp,
        )
    ]
    return payloads(result.arrays), metrics


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
@pytest.mark.parametrize("every", [1, 2])
def test_a_killed_run_ends_as_if_it_had_not_been(build: Build, every: int, tmp_path: Path) -> None:
    random.seed(5)
    expected = everything(run(build(device="cpu")))
    for killed_in in (1, 2, 4, ROUNDS):
        options = {"checkpoint_dir": tmp_path / f"{killed_in}", "checkpoint_every": every}
        random.seed(5)
        with pytest.raises(Killed):
            run(build(device="cpu", **options), killed_in=killed_in)
        random.seed(killed_in)
        result = run(build(device="cpu", **options, resume=True))
        assert everything(result) == expected


def test_a_run_with_checkpoints_is_the_run_without(tmp_path: Path) -> None:
    random.seed(1)
    plain = everything(run(FedPW()))
    random.seed(1)
    assert everything(run(FedPW(checkpoint_dir=tmp_path))) == plain
    assert CheckpointStore(tmp_path).rounds() == [5, 4, 3]


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    random.seed(2)
    expected = everything(run(FedPW(), rounds=4))
    random.seed(2)
    run(FedPW(checkpoint_dir=tmp_path), rounds=2)
    random.seed(99)
    longer = FedPW(checkpoint_dir=tmp_path, resume=True)
    assert everything(run(longer, rounds=4)) == expected
    again = run(FedPW(checkpoint_dir=tmp_path, resume=True), rounds=4)
    assert everything(again) == expected


def test_resume_begins_where_there_is_no_checkpoint_yet(tmp_path: Path) -> None:
    random.seed(3)
    expected = everything(run(FedPW()))
    random.seed(3)
    assert everything(run(FedPW(checkpoint_dir=tmp_path, resume=True))) == expected


def test_a_folder_in_use_is_refused_without_resume(tmp_path: Path) -> None:
    run(FedPW(checkpoint_dir=tmp_path), rounds=1)
    with pytest.raises(CheckpointError, match=r"up to round 1: go on with\s+resume=True"):
        run(FedPW(checkpoint_dir=tmp_path), rounds=2)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda **options: FedPW(beta=0.4, **options), "beta: 0.3 in the checkpoint, 0.4 now"),
        (lambda **options: FedPW(adjustment="client", **options), "adjustment: 'server' in the"),
        (
            lambda **options: FedAdamPW().set(**options),
            "strategy: 'FedPW' in the checkpoint, 'FedAdamPW' now",
        ),
    ],
)
def test_a_checkpoint_of_another_method_is_refused(
    other: Build, named: str, tmp_path: Path
) -> None:
    run(FedPW(checkpoint_dir=tmp_path), rounds=1)
    with pytest.raises(CheckpointError, match=named):
        run(other(checkpoint_dir=tmp_path, resume=True), rounds=2)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run(FedPW(checkpoint_dir=tmp_path), rounds=1)
    other = {**MODEL, "body.bias": MODEL["body.bias"][:3]}
    with pytest.raises(CheckpointError, match=r"model.body.bias: 'array 1, float32 \[4\]' in"):
        FedPW(checkpoint_dir=tmp_path, resume=True).start(
            ClientsGrid(dict.fromkeys(NODES, good_client)), array_record(other), num_rounds=2
        )


def test_the_newest_intact_checkpoint_is_gone_on_from(
    tmp_path: Path, flower_log: pytest.LogCaptureFixture
) -> None:
    random.seed(4)
    expected = everything(run(FedPW()))
    random.seed(4)
    run(FedPW(checkpoint_dir=tmp_path), rounds=3)
    torn = tmp_path / "round-000003" / "state.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    assert everything(run(FedPW(checkpoint_dir=tmp_path, resume=True))) == expected
    assert "round-000003 is not intact" in flower_log.text
    assert "Going on after round 2 of 5" in flower_log.text


def test_resume_without_a_folder_is_refused() -> None:
    with pytest.raises(ValueError, match="resume=True needs checkpoint_dir"):
        FedPW(resume=True)


def test_any_strategy_of_flower_can_be_run_with_checkpoints(tmp_path: Path) -> None:
    def with_checkpoints(rounds: int, resume: bool) -> Result:
        return run_rounds(
            FedAvg(),
            CheckpointStore(tmp_path),
            ClientsGrid(
                dict.fromkeys(NODES, good_client),
                arrange=lambda all_: sorted(all_, key=lambda reply: reply.metadata.src_node_id),
            ),
            array_record(MODEL),
            num_rounds=rounds,
            resume=resume,
            fingerprint={"data": "mine"},
        )

    with_checkpoints(2, resume=False)
    result = with_checkpoints(3, resume=True)
    assert sorted(result.train_metrics_clientapp) == [1, 2, 3]
