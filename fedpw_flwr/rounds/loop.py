"""Flower's loop over the rounds, with a checkpoint after each and a first round of one's choice.

`Strategy.start` of Flower always begins with round 1. This loop calls the same methods of the
strategy in the same order, and begins after the newest checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedpw_flwr.rounds.checkpoints import Checkpoint, CheckpointError, CheckpointStore, differences
from fedpw_flwr.rounds.random_state import restore_random_state, saved_random_state
from fedpw_flwr.rounds.strategy_state import (
    restore_strategy,
    strategy_fingerprint,
    strategy_state,
)
from fedpw_flwr.wire.arrays import ArrayTensors, encode_arrays

__all__ = ["check_rounds", "check_same", "model_fingerprint", "newest_checkpoint", "run_rounds"]

logger = logging.getLogger("flwr")

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]

_METRICS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")


def run_rounds(
    strategy: Strategy,
    checkpoints: CheckpointStore,
    grid: Grid,
    initial_arrays: ArrayRecord,
    num_rounds: int = 3,
    timeout: float = 3600,
    train_config: ConfigRecord | None = None,
    evaluate_config: ConfigRecord | None = None,
    evaluate_fn: Evaluate | None = None,
    *,
    resume: bool = False,
    fingerprint: Mapping[str, Any] | None = None,
    carrier: object | None = None,
    on_begin: Callable[[int | None], None] | None = None,
) -> Result:
    """Run a strategy as `Strategy.start` does, with checkpoints.

    Parameters
    ----------
    strategy : Strategy
        A strategy that carries nothing from round to round, such as FedAvg, is `Stateful`, such as
        FedPW, or is one of Flower's server optimizers (FedAdam, FedAdagrad, FedYogi, FedAvgM). What
        others carry, and what stands inside a wrapper, is not saved: give that as `carrier`.
    checkpoints : CheckpointStore
        Where checkpoints are.
    grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        As in `Strategy.start`.
    resume : bool (default: False)
        Go on after the newest intact checkpoint; begin with the first round where there is none.
    fingerprint : Mapping[str, Any] | None (default: None)
        What else a run must keep when it goes on.
    carrier : object | None (default: None)
        The strategy whose state is saved, where `strategy` only stands round it.
    on_begin : Callable[[int | None], None] | None (default: None)
        Called before the first round, with the round that the run goes on after; None where it
        begins.

    Returns
    -------
    Result
        The last model, and the metrics of all rounds, also those before a resume.

    Raises
    ------
    CheckpointError
        If there are checkpoints already and `resume` is False, if all are damaged, if the newest is
        that of another model or method, if one cannot be written, or if another process writes to
        the folder.
    """
    carrier = strategy if carrier is None else carrier
    train_config = ConfigRecord() if train_config is None else train_config
    evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
    identity = {
        **strategy_fingerprint(carrier),
        **(fingerprint or {}),
        "train_config": dict(train_config),
        "model": model_fingerprint(initial_arrays),
    }
    with checkpoints.locked():
        newest = newest_checkpoint(checkpoints, resume)
        logger.info(
            "Starting %s strategy, checkpoints in %s", type(carrier).__name__, checkpoints.folder
        )
        strategy.summary()
        result = Result(arrays=initial_arrays)
        first = 1

        def save(server_round: int) -> None:
            state, tensors = strategy_state(carrier)
            random_state, random_tensors = saved_random_state()
            checkpoints.save(
                Checkpoint(
                    round=server_round,
                    model=dict(ArrayTensors(result.arrays)),
                    state={
                        "strategy": state,
                        "random": random_state,
                        "metrics": {name: _rounds(getattr(result, name)) for name in _METRICS},
                    },
                    tensors={**tensors, **random_tensors},
                    fingerprint=identity,
                )
            )

        if newest is not None:
            check_same(newest, identity, checkpoints)
            check_rounds(newest, num_rounds)
            _restore(newest, carrier, result)
        if on_begin is not None:
            on_begin(None if newest is None else newest.round)
        if newest is None:
            if evaluate_fn is not None:
                _keep(result.evaluate_metrics_serverapp, 0, evaluate_fn(0, initial_arrays))
            save(0)
        else:
            first = newest.round + 1
            logger.info("\tGoing on after round %s of %s", newest.round, num_rounds)

        for server_round in range(first, num_rounds + 1):
            logger.info("")
            logger.info("[ROUND %s/%s]", server_round, num_rounds)
            replies = grid.send_and_receive(
                strategy.configure_train(server_round, result.arrays, train_config, grid),
                timeout=timeout,
            )
            arrays, metrics = strategy.aggregate_train(server_round, replies)
            if arrays is not None:
                result.arrays = arrays
            _keep(result.train_metrics_clientapp, server_round, metrics)
            replies = grid.send_and_receive(
                strategy.configure_evaluate(server_round, result.arrays, evaluate_config, grid),
                timeout=timeout,
            )
            metrics = strategy.aggregate_evaluate(server_round, replies)
            _keep(result.evaluate_metrics_clientapp, server_round, metrics)
            if evaluate_fn is not None:
                metrics = evaluate_fn(server_round, result.arrays)
                _keep(result.evaluate_metrics_serverapp, server_round, metrics)
            if checkpoints.is_due(server_round, num_rounds):
                save(server_round)
        standstill = getattr(carrier, "standstill", None)
        if standstill is not None:
            standstill.log_at_end()
        return result


def newest_checkpoint(checkpoints: CheckpointStore, resume: bool) -> Checkpoint | None:
    """Read the checkpoint to go on from; None where a run begins.

    Raises
    ------
    CheckpointError
        If there are checkpoints and `resume` is False, or all are damaged.
    """
    if resume:
        newest = checkpoints.newest()
        if newest is None:
            logger.warning(
                "There is no checkpoint in %s to go on from: beginning with round 1",
                checkpoints.folder,
            )
        return newest
    rounds = checkpoints.rounds()
    if rounds:
        raise CheckpointError(
            f"{checkpoints.folder} holds checkpoints up to round {rounds[0]}: go on with "
            "resume=True, or choose another folder for a new run"
        )
    return None


def check_same(
    checkpoint: Checkpoint, identity: Mapping[str, Any], checkpoints: CheckpointStore
) -> None:
    """Check that a checkpoint is one of this run.

    Raises
    ------
    CheckpointError
        If something differs, with what it is.
    """
    found = differences(checkpoint.fingerprint, identity)
    if found:
        listed = "\n  ".join(found)
        raise CheckpointError(
            f"the checkpoint of round {checkpoint.round} in {checkpoints.folder} is that of "
            f"another run:\n  {listed}\nGo on with what it was begun with, or begin anew in "
            "another folder"
        )


def check_rounds(checkpoint: Checkpoint, num_rounds: int) -> None:
    """Check that a run has not had more rounds than are asked for.

    Raises
    ------
    CheckpointError
        If it has.
    """
    if checkpoint.round > num_rounds:
        raise CheckpointError(
            f"the run has had {checkpoint.round} rounds already, and {num_rounds} are asked for"
        )


def _restore(checkpoint: Checkpoint, strategy: object, result: Result) -> None:
    """Put everything back as it was after the checkpoint's round."""
    result.arrays = encode_arrays(checkpoint.model)
    state = checkpoint.state
    try:
        restore_strategy(strategy, state["strategy"], checkpoint.tensors, result.arrays)
        restore_random_state(state["random"], dict(checkpoint.tensors))
        for name in _METRICS:
            kept = getattr(result, name)
            for server_round, metrics in state["metrics"][name].items():
                kept[int(server_round)] = MetricRecord(metrics)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint of round {checkpoint.round} holds another version's state "
            f"({type(error).__name__}: {error}): go on with the version that wrote it, or "
            "begin a new run with its model.safetensors as the initial model"
        ) from error


def model_fingerprint(arrays: ArrayRecord) -> dict[str, str]:
    """Return place, dtype and shape of every array, by name."""
    return {
        name: f"array {place}, {array.dtype} {list(array.shape)}"
        for place, (name, array) in enumerate(arrays.items())
    }


def _keep(kept: dict[int, MetricRecord], server_round: int, metrics: MetricRecord | None) -> None:
    if metrics is not None:
        logger.info("\t└──> %s", metrics)
        kept[server_round] = metrics


def _rounds(metrics: Mapping[int, MetricRecord]) -> dict[str, dict[str, Any]]:
    return {str(server_round): dict(record) for server_round, record in metrics.items()}
