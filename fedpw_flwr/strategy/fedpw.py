"""FedPW as a strategy of Flower's Message API: one line changed in an existing ServerApp.

A thin class over the algorithm: it asks Flower's FedAvg to sample and send, screens what comes
back, hands the usable replies to the server step, and turns the result into Flower's records.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, Result

from fedpw_flwr.algorithm import FedPWSettings, WeightingState
from fedpw_flwr.algorithm.settings import distinct_names
from fedpw_flwr.checkpoint import CheckpointStore
from fedpw_flwr.rounds.attendance import WhenMissing
from fedpw_flwr.rounds.driver import Adjustment, Aggregated, ServerRounds
from fedpw_flwr.rounds.faults import BadReply
from fedpw_flwr.rounds.loop import run_rounds
from fedpw_flwr.rounds.metrics import round_metrics
from fedpw_flwr.rounds.screening import Answer, EvaluateReply, answers_of_messages
from fedpw_flwr.rounds.standstill import Standstill
from fedpw_flwr.strategy.compatibility import (
    refuse_clipping_of_packed,
    refuse_incompatible_callers,
)
from fedpw_flwr.strategy.sampling import NodeSampling
from fedpw_flwr.strategy.screened_fedavg import MetricsAggregation, ScreenedFedAvg
from fedpw_flwr.strategy.step_on_top import StepOnTrained, place_in_front
from fedpw_flwr.wire.adjustment import Upload
from fedpw_flwr.wire.packing import UploadDtype

__all__ = ["FedPW"]

logger = logging.getLogger("flwr")

_STEP_ON_TOP = (FedAdam, FedAdagrad, FedYogi, FedAvgM)
"""Strategies that take a step on the aggregate of the class behind them."""


class FedPW(ScreenedFedAvg):
    """Fair federated learning by parameter adjustment and adaptive weights.

    Implementation of FedPW (Guan et al., "Rethinking Fair Federated Learning from Parameter and
    Client View", NeurIPS 2025). A drop-in for Flower's FedAvg: clients stay as they are, as long as
    their training replies report the mean training loss.

    A reply that cannot be used (not finite, wrong shape, missing loss, ...) costs only itself: it
    is dropped, logged with client and reason, and counted in the round's metrics. Where all replies
    of the first round have the same fault, it is the project's, and an error says what to change.

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
        Where the server step runs; None is the CPU, whose form of it is the fast one.
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
        where they may be asked who they are: once every node has shown that it answers, with
        `numpy_client_app` and numbered clients, or from the first round on with
        ``strategy.sampling.asks_identities = True``. None: a number from `random`.
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

    metrics_prefix = "fedpw-"

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
        self._with_checkpoints = False
        self._aggregate: ArrayRecord | None = None
        super().__init__(
            NodeSampling(seed, wait_for_clients, when_missing),
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
        place_in_front(StepOnTrained, cls, _STEP_ON_TOP)

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

    @property
    def standstill(self) -> Standstill:
        """How long the model has not changed."""
        return self.rounds.standstill

    def saved_state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return everything the method carries from round to round: JSON, and tensors by name."""
        state, tensors = self.rounds.saved_state()
        return {**state, **self.sampling.saved_state()}, tensors

    def restore_state(self, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the method to what `saved_state` returned.

        Raises
        ------
        ValueError
            If it is not such a state.
        """
        self.rounds.restore_state(state, tensors)
        self.sampling.restore_state(state)

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
            If `trainable` names an array the model does not have, no array of the model is
            floating, one cannot be decoded or is not finite, or something around the strategy or in
            `config` cannot work with it.
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
        messages = self.sampled(server_round, arrays, config, grid)
        nodes = [message.metadata.dst_node_id for message in messages]
        self.rounds.introduce(self.sampling.identities(grid, self.rounds.strangers(nodes)))
        entries = self.rounds.begin(arrays, nodes)
        for message, node in zip(messages, nodes, strict=True):
            if entries[node]:
                message.content = _with_entries(
                    message.content, self.configrecord_key, entries[node]
                )
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
            ``fedpw-quarantined``, ``fedpw-failed``, ``fedpw-empty``. In the first round the next
            model is without the arrays that no client returned: see "Partial models" in the README.

        Raises
        ------
        UnusableRepliesError
            If all replies of the first round have the same fault (`MissingLossError`: none reports
            the training loss), or three rounds from the start had none that can be used.
        RuntimeError
            If `configure_train` was not called before.
        """
        aggregated = self.rounds.finish(
            "aggregate_train",
            server_round,
            answers_of_messages(replies, self._asked_to_train),
            self.weighted_by_key,
        )
        arrays = self._handed_on(aggregated)
        if not aggregated.asked:
            return arrays, None
        contents = [reply.content for reply in aggregated.good]
        self.sampling.note_replies({reply.node_id: reply.content for reply in aggregated.good})
        metrics = self._averaged_train_metrics(contents)
        results = [reply.result for reply in aggregated.good]
        metrics.update(round_metrics(aggregated.step, results, aggregated.bad))
        return arrays, metrics

    def _handed_on(self, aggregated: Aggregated) -> ArrayRecord | None:
        """Return the next model; to a server optimizer what it is to step on, and where from."""
        if not isinstance(self, StepOnTrained):
            return aggregated.arrays
        self._aggregate = aggregated.arrays
        if aggregated.step is None:
            return None
        start = self.rounds.trained_start()
        by_array = {name: array.numpy() for name, array in start.items()}
        self.current_arrays = start if isinstance(self, FedAvgM) else by_array
        return self.rounds.trained(aggregated.arrays)

    def _after_step(self, stepped: ArrayRecord | None) -> ArrayRecord | None:
        """Return the whole model, with what the optimizer made of the trained arrays."""
        aggregate, self._aggregate = self._aggregate, None
        if stepped is None or aggregate is None:
            return aggregate if stepped is None else stepped
        return self.rounds.after_step_on_top(stepped, aggregate)

    def _screened_evaluation(
        self, server_round: int, answers: Iterable[Answer], asked: Collection[int] | None
    ) -> tuple[Sequence[EvaluateReply], Sequence[BadReply]]:
        return self.rounds.screen_evaluation(
            "aggregate_evaluate", server_round, answers, asked, self.weighted_by_key
        )


def _with_entries(content: RecordDict, config_key: str, entries: Mapping[str, bytes]) -> RecordDict:
    """Return a message's records with entries added to its configuration, nothing else copied."""
    config = content.config_records[config_key]
    return RecordDict({**content, config_key: ConfigRecord({**config, **entries})})
