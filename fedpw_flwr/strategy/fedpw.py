"""FedPW as a strategy of Flower's Message API: one line changed in an existing ServerApp.

A thin class over the algorithm: it asks Flower's FedAvg to sample and send, screens what comes
back, hands the usable replies to the server step, and turns the result into Flower's records.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, Result

from fedpw_flwr.algorithm import FedPWSettings, WeightingState
from fedpw_flwr.algorithm.settings import distinct_names
from fedpw_flwr.checkpoint import CheckpointStore
from fedpw_flwr.checkpoint.rounds import run_rounds
from fedpw_flwr.strategy.attendance import Attendance, WhenMissing, minima_of_at_most
from fedpw_flwr.strategy.compatibility import (
    refuse_clipping_of_packed,
    refuse_incompatible_callers,
)
from fedpw_flwr.strategy.draws import MINIMA, Draws, Phase, all_of, share_of
from fedpw_flwr.strategy.listed_grid import ListedGrid
from fedpw_flwr.strategy.quarantine import answers_of_messages
from fedpw_flwr.strategy.reply_metrics import alike_metrics, round_metrics
from fedpw_flwr.strategy.roll_call import RollCall
from fedpw_flwr.strategy.server_rounds import Adjustment, ServerRounds
from fedpw_flwr.wire.adjustment import Upload
from fedpw_flwr.wire.packing import UploadDtype

__all__ = ["FedPW"]

logger = logging.getLogger("flwr")

_STEP_ON_TOP = (FedAdam, FedAdagrad, FedYogi, FedAvgM)
"""Strategies that take a step on the aggregate of the class behind them."""

MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]


class FedPW(FedAvg):
    """Fair federated learning by parameter adjustment and adaptive weights.

    Implementation of FedPW (Guan et al., "Rethinking Fair Federated Learning from Parameter and
    Client View", NeurIPS 2025). A drop-in for Flower's FedAvg: clients stay as they are, as long as
    their training replies report the mean training loss.

    A reply that cannot be used (not finite, wrong shape, missing loss, ...) costs only itself: it
    is dropped, logged with client and reason, and counted in the round's metrics.

    Parameters
    ----------
    fraction_train, fraction_evaluate, min_train_nodes, min_evaluate_nodes, min_available_nodes
        Sampling of nodes, as in Flower's FedAvg.
    weighted_by_key : str (default: "num-examples")
        MetricRecord key by which metrics are averaged, and the aggregation weight where
        `adapt_weights` is False. Equal weights where no reply has it.
    arrayrecord_key, configrecord_key, train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        As in Flower's FedAvg.
    avg_drop_rate : float (default: 0.3)
        r̄, the mean share of an update's entries that is masked, in [0, 1).
    beta : float (default: 0.3)
        β, base momentum of the weights, in (0, 1].
    train_loss_key : str (default: "train_loss")
        MetricRecord key under which clients report their mean training loss.
    clip_weights : bool (default: True)
        Never give a client a negative weight. False is the paper's formula.
    adjust_parameters : bool (default: True)
        Parameter Adjustment; False is the ablation without it.
    adapt_weights : bool (default: True)
        Adaptive Weighted Aggregation; False is the ablation without it. Both False is FedAvg.
    max_weight : float | None (default: 3.0)
        Largest aggregation weight of one client, in units of the equal share 1/N: what a client can
        grab by reporting a large loss. Not for weights by number of examples. None: the paper's
        formula.
    max_loss_ratio : float | None (default: 10.0)
        A loss counts as at most this many times the round's median, and as at least the median
        divided by it. None: the paper's formula.
    trainable : Sequence[str] | None (default: None)
        Names of the trainable arrays. None: all floating arrays except BatchNorm's running
        statistics.
    device : str | torch.device | None (default: None)
        Where the server step runs; None takes CUDA when there is one.
    adjustment : "server" | "client" (default: "server")
        Where Parameter Adjustment runs. "server": the paper's formulas, with any clients. "client":
        each client masks and rescales its own update, with what the server knew before the round
        (`FedPWClient` or `fedpw_mod`); the server adjusts the updates of clients that do not.
    upload : "dense" | "packed" (default: "dense")
        How clients send adjusted updates: as arrays, or as bit masks with the kept values.
    upload_dtype : "float32" | "float16" | "bfloat16" (default: "float32")
        Type of packed values.
    checkpoint_dir : str | Path | None (default: None)
        Folder for checkpoints: model, state of the method, metrics and random state. None: none.
    checkpoint_every : int (default: 1)
        Rounds between two checkpoints.
    resume : bool (default: False)
        Whether `start` goes on after the newest intact checkpoint in `checkpoint_dir`, and begins
        where there is none yet. False refuses a folder that holds checkpoints.
    wait_for_clients : float | None (default: 3600.0)
        Seconds to wait for as many nodes as are needed (`min_available_nodes`, `min_train_nodes`,
        `min_evaluate_nodes`), counted from when there were last enough. None waits for ever.
    seed : int | None (default: None)
        Decides which nodes are drawn for a round, where some are; the same clients in another run
        where they say who they are (`checkpoint_dir`, or `adjustment="client"`). None: a number
        from `random` at the first draw.
    when_missing : "stop" | "continue" (default: "stop")
        After it, "stop" the run with `TooFewClientsError`, or "continue" with the nodes that are
        there, without waiting again until there were enough.

    Raises
    ------
    ValueError
        If a setting is outside its range, or `device` is not there.
    TypeError
        If a setting has the wrong type.

    Examples
    --------
    >>> from fedpw_flwr import FedPW
    >>> strategy = FedPW(fraction_train=1.0, min_available_nodes=4)
    """

    def __init__(
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggregation | None = None,
        evaluate_metrics_aggr_fn: MetricsAggregation | None = None,
        *,
        avg_drop_rate: float = 0.3,
        beta: float = 0.3,
        train_loss_key: str = "train_loss",
        clip_weights: bool = True,
        adjust_parameters: bool = True,
        adapt_weights: bool = True,
        max_weight: float | None = 3.0,
        max_loss_ratio: float | None = 10.0,
        trainable: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        adjustment: Adjustment = "server",
        upload: Upload = "dense",
        upload_dtype: UploadDtype = "float32",
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int = 1,
        resume: bool = False,
        wait_for_clients: float | None = 3600.0,
        when_missing: WhenMissing = "stop",
        seed: int | None = None,
    ) -> None:
        settings = FedPWSettings(
            avg_drop_rate=avg_drop_rate,
            beta=beta,
            clip_weights=clip_weights,
            adapt_weights=adapt_weights,
            max_weight=max_weight,
            max_loss_ratio=max_loss_ratio,
            adjust_parameters=adjust_parameters,
            trainable=None if trainable is None else distinct_names(trainable),
        )
        self.rounds = ServerRounds(
            settings,
            train_loss_key=train_loss_key,
            device=device,
            adjustment=adjustment,
            upload=upload,
            upload_dtype=upload_dtype,
        )
        self.checkpoints: CheckpointStore | None = None
        if checkpoint_dir is not None:
            self.checkpoints = CheckpointStore(checkpoint_dir, every=checkpoint_every)
        elif resume:
            raise ValueError("resume=True needs checkpoint_dir, the folder of the checkpoints")
        self.resume = resume
        self.asks_identities = self.rounds.on_clients or self.checkpoints is not None
        """Whether nodes are asked who they are, where some are drawn: clients that cannot answer
        log an error."""
        self.draws = Draws(seed)
        """Draws the clients of a round."""
        self._with_checkpoints = False
        self._roll_call = RollCall()
        self._attendance = Attendance(wait_for_clients, when_missing)
        self._asked_to_train: tuple[Message, ...] = ()
        self._asked_to_evaluate: tuple[Message, ...] | None = None
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
        )

    def __init_subclass__(cls) -> None:
        """Refuse one of Flower's strategies beside this one that would keep FedPW from working.

        Raises
        ------
        TypeError
            If one in front of FedPW aggregates by itself, or one behind it would never be called.
        """
        super().__init_subclass__()
        place = cls.__mro__.index(FedPW)
        for base in cls.__mro__:
            if base is FedAvg:
                break
            behind = cls.__mro__.index(base) > place
            aggregates = "aggregate_train" in vars(base) and base.__module__.startswith("flwr.")
            if aggregates and (behind or not issubclass(base, _STEP_ON_TOP)):
                name = base.__name__
                raise TypeError(
                    f"{cls.__name__}: put {name} in front, class {cls.__name__}({name}, FedPW)"
                    if behind and issubclass(base, _STEP_ON_TOP)
                    else f"{cls.__name__}: {name} aggregates by itself and cannot be combined with "
                    "FedPW; FedAdam, FedAdagrad, FedYogi and FedAvgM can stand in front of it"
                )

    @property
    def settings(self) -> FedPWSettings:
        """The method's hyper-parameters."""
        return self.rounds.settings

    @property
    def state(self) -> WeightingState:
        """The method's memory of the clients."""
        return self.rounds.state

    @state.setter
    def state(self, state: WeightingState) -> None:
        self.rounds.state = state

    def saved_state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return everything the method carries from round to round: JSON, and tensors by name."""
        state, tensors = self.rounds.saved_state()
        return {**state, "seed": self.draws.seed}, tensors

    def restore_state(self, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the method to what `saved_state` returned.

        Raises
        ------
        ValueError
            If it is not such a state.
        """
        self.rounds.restore_state(state, tensors)
        self.draws = Draws(state.get("seed"))

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that a run must keep when it goes on from a checkpoint."""
        return self.rounds.fingerprint()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds as FedAvg does, with checkpoints where `checkpoint_dir` was given.

        Returns
        -------
        Result
            The last model, and the metrics of all rounds, also those before a resume.

        Raises
        ------
        CheckpointError
            If a checkpoint cannot be written, read, or gone on from; see `resume`.
        """
        arguments = (
            *(grid, initial_arrays, num_rounds, timeout),
            *(train_config, evaluate_config, evaluate_fn),
        )
        if self.checkpoints is None:
            return super().start(*arguments)
        self._with_checkpoints = True
        return run_rounds(self, self.checkpoints, *arguments, resume=self.resume)

    def summary(self) -> None:
        """Log the method's settings and those of FedAvg.

        Raises
        ------
        ValueError
            If the strategy stands inside a wrapper that FedPW cannot work with.
        """
        refuse_incompatible_callers()
        self.rounds.log_settings()
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes and send them the model, as FedAvg, with what they are to do to updates.

        Raises
        ------
        ValueError
            If `trainable` names an array the model does not have, an array of the model cannot be
            decoded or is not finite, or something around the strategy or in `config` cannot work
            with it.
        TypeError
            If the model holds complex arrays, or `trainable` names one that is not floating.
        """
        refuse_incompatible_callers()
        if self.checkpoints is not None and not self._with_checkpoints:
            raise ValueError(
                "checkpoint_dir was given, but not FedPW's start runs the rounds, so none would be "
                "saved: call fedpw_flwr.checkpoint.rounds.run_rounds(strategy, CheckpointStore("
                "folder), grid, arrays, ..., carrier=fedpw) in place of strategy.start"
            )
        if self.rounds.upload == "packed":
            refuse_clipping_of_packed(config)
        arrays = self.rounds.checked_model(server_round, arrays)
        with self._present(grid, "train", server_round) as present:
            messages = list(super().configure_train(server_round, arrays, config, present))
        nodes = [message.metadata.dst_node_id for message in messages]
        self.rounds.introduce(self._roll_call.take(grid, self.rounds.strangers(nodes)))
        entries = self.rounds.begin(arrays, nodes)
        for message, node in zip(messages, nodes, strict=True):
            if entries[node]:
                message.content = _with_entries(
                    message.content, self.configrecord_key, entries[node]
                )
        self._asked_to_train = tuple(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the round's training replies into the next model.

        Parameters
        ----------
        server_round : int
            Flower's round number, for the log.
        replies : Iterable[Message]
            Replies to the messages of `configure_train`, in any order.

        Returns
        -------
        tuple[ArrayRecord | None, MetricRecord | None]
            The next model (the current one where no reply can be used), and the clients' averaged
            metrics with FedPW's own: parallel lists ``fedpw-client-id``, ``fedpw-weight``,
            ``fedpw-p``, ``fedpw-q``, ``fedpw-drop-rate``, ``fedpw-loss`` over the participants, and
            the numbers ``fedpw-loss-term-share``, ``fedpw-amplification``, ``fedpw-bounded``,
            ``fedpw-quarantined``, ``fedpw-failed``.

        Raises
        ------
        MissingLossError
            If replies came and none of them reports the training loss.
        RuntimeError
            If `configure_train` was not called before.
        """
        aggregated = self.rounds.finish(
            "aggregate_train",
            server_round,
            answers_of_messages(replies, self._asked_to_train),
            self.weighted_by_key,
        )
        if not aggregated.asked:
            return aggregated.arrays, None
        metrics = MetricRecord()
        contents = alike_metrics([reply.content for reply in aggregated.good], self.weighted_by_key)
        if contents:
            metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        results = [reply.result for reply in aggregated.good]
        metrics.update(round_metrics(aggregated.step, results, aggregated.bad))
        return aggregated.arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes for evaluation, as FedAvg; remember whom."""
        with self._present(grid, "evaluate", server_round) as present:
            messages = tuple(super().configure_evaluate(server_round, arrays, config, present))
        self._asked_to_evaluate = messages
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the round's evaluation metrics over the replies that can be used.

        Returns
        -------
        MetricRecord | None
            The averaged metrics with ``fedpw-quarantined`` and ``fedpw-failed``; None where nobody
            was asked.
        """
        asked = self._asked_to_evaluate
        if asked is not None and not asked:
            return None
        good, bad = self.rounds.screen_evaluation(
            "aggregate_evaluate",
            server_round,
            answers_of_messages(replies, asked or ()),
            None if asked is None else {message.metadata.dst_node_id for message in asked},
            self.weighted_by_key,
        )
        metrics = MetricRecord()
        contents = alike_metrics([reply.content for reply in good], self.weighted_by_key)
        if contents:
            metrics = self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key)
        metrics.update(round_metrics(None, [], bad))
        return metrics

    @contextmanager
    def _present(self, grid: Grid, phase: Phase, server_round: int) -> Iterator[Grid]:
        """Wait for the nodes that are needed, and list those that are to take part.

        Where some are drawn by chance, in an order that another run repeats. Only clients of this
        package say who they are, so they are asked only where they or a repetition are expected.
        """
        fraction, least = share_of(self, phase)
        if fraction == 0.0:
            yield grid
            return
        nodes = self._attendance.wait(grid.get_node_ids, max(self.min_available_nodes, least))
        if fraction == 1.0:
            with minima_of_at_most(self, MINIMA, len(nodes)):
                yield ListedGrid(grid, nodes)
            return
        ordered = self._roll_call.ordered(grid, nodes) if self.asks_identities else sorted(nodes)
        size = min(len(nodes), max(int(len(nodes) * fraction), least))
        drawn = self.draws.draw(phase, server_round, ordered, size)
        logger.info("configure_%s: Drew %s nodes (out of %s)", phase, size, len(nodes))
        with all_of(grid, self, phase, drawn) as listed:
            yield listed


def _with_entries(content: RecordDict, config_key: str, entries: Mapping[str, bytes]) -> RecordDict:
    """Return a message's records with entries added to its configuration, nothing else copied."""
    config = content.config_records[config_key]
    return RecordDict({**content, config_key: ConfigRecord({**config, **entries})})
