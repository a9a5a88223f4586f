"""FedPW as a strategy of Flower's legacy API, for NumPyClients under its server."""

from __future__ import annotations

import json
import logging
import math
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.common import (
    EvaluateRes,
    FitIns,
    FitRes,
    MetricsAggregationFn,
    NDArrays,
    Parameters,
    Scalar,
)
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg, FedOpt

from fedpw_flwr.algorithm import FedPWSettings, WeightingState
from fedpw_flwr.algorithm.settings import distinct_names
from fedpw_flwr.legacy.client_manager import stated_identities
from fedpw_flwr.rounds.attendance import (
    Attendance,
    WhenMissing,
    minima_of_at_most,
)
from fedpw_flwr.rounds.driver import Adjustment, Aggregated, ServerRounds
from fedpw_flwr.rounds.metrics import round_metrics
from fedpw_flwr.rounds.screening import Answer
from fedpw_flwr.rounds.standstill import Standstill
from fedpw_flwr.strategy.compatibility import (
    refuse_clipping_of_packed,
    refuse_incompatible_callers,
)
from fedpw_flwr.strategy.step_on_top import StepOnTrainedFit, place_in_front
from fedpw_flwr.wire.adjustment import REPORT_KEY, Upload
from fedpw_flwr.wire.arrays import array_of_npy
from fedpw_flwr.wire.packing import UploadDtype
from fedpw_flwr.wire.records import records_of_metrics

__all__ = ["FedPW"]

logger = logging.getLogger("flwr")

_TENSOR_TYPE = "numpy.ndarray"
_MINIMA = ("min_fit_clients", "min_evaluate_clients", "min_available_clients")
_EXAMPLES_KEY, _EVALUATION_LOSS_KEY = "num-examples", "loss"

# Records that a reply or a message lacks, as exceptions, tracebacks and SuperNodes tell it, and
# what FedPW's own bridge and mod say.
_OF_FUNCTIONS = re.compile(
    r"KeyError(: '|'>:<'')(arrays'|config'|fitres\.|fitins\.)|the server runs a legacy strategy"
)

EvaluateFn = Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]] | None]


class FedPW(FedAvg):
    """Fair federated learning for NumPyClients under Flower's legacy server.

    Implementation of FedPW (Guan et al., "Rethinking Fair Federated Learning from Parameter and
    Client View", NeurIPS 2025), with the arguments, the state and the results of
    `fedpw_flwr.FedPW`. Clients report the mean training loss in the metrics of ``fit``; one in
    `FedPWClient` can also adjust its own update. A client is known by the metric ``client-id`` of
    ``fit``, an integer, else by Flower's node id.

    Parameters
    ----------
    fraction_fit, fraction_evaluate, min_fit_clients, min_evaluate_clients, min_available_clients
        Sampling of clients, as in Flower's FedAvg.
    evaluate_fn, on_fit_config_fn, on_evaluate_config_fn, accept_failures, initial_parameters
        As in Flower's FedAvg.
    fit_metrics_aggregation_fn, evaluate_metrics_aggregation_fn : optional
        As in Flower's FedAvg; for training they get those metrics that all usable replies share.
    inplace : bool (default: True)
        As in Flower's FedAvg, where it chooses a way of averaging; FedPW has its own.
    avg_drop_rate, beta, train_loss_key, clip_weights, adjust_parameters, adapt_weights, max_weight,
    max_loss_ratio
        The method, as in `fedpw_flwr.FedPW`. Where `adapt_weights` is False, clients are weighted
        by their number of examples.
    trainable : Sequence[str] | None (default: None)
        Names of the trainable arrays; needs `array_names`.
    device, adjustment, upload, upload_dtype, wait_for_clients, when_missing
        As in `fedpw_flwr.FedPW`.
    array_names : Sequence[str] | None (default: None)
        Names of the parameters in their order, such as ``list(model.state_dict())``: lists of
        parameters have none, and BatchNorm's running statistics are known by theirs. None: every
        floating array is trainable, unless `adjustment` is "client" and the clients say which are
        (``FedPWClient(trainable=...)``).

    Raises
    ------
    ValueError
        If a setting is outside its range or contradicts another, or `device` is not there.
    TypeError
        If a setting has the wrong type.

    Examples
    --------
    >>> from fedpw_flwr.legacy import FedPW
    >>> strategy = FedPW(min_available_clients=4, initial_parameters=parameters)
    """

    def __init__(
        self,
        *,
        fraction_fit: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_fit_clients: int = 2,
        min_evaluate_clients: int = 2,
        min_available_clients: int = 2,
        evaluate_fn: EvaluateFn | None = None,
        on_fit_config_fn: Callable[[int], dict[str, Scalar]] | None = None,
        on_evaluate_config_fn: Callable[[int], dict[str, Scalar]] | None = None,
        accept_failures: bool = True,
        initial_parameters: Parameters | None = None,
        fit_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        evaluate_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        inplace: bool = True,
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
        array_names: Sequence[str] | None = None,
        wait_for_clients: float | None = 3600.0,
        when_missing: WhenMissing = "stop",
    ) -> None:
        if trainable is not None and array_names is None:
            raise ValueError(
                "trainable names arrays, but lists of parameters have no names: give "
                "array_names=list(model.state_dict()) with it"
            )
        self.rounds = ServerRounds(
            FedPWSettings(
                avg_drop_rate=avg_drop_rate,
                beta=beta,
                clip_weights=clip_weights,
                adapt_weights=adapt_weights,
                max_weight=max_weight,
                max_loss_ratio=max_loss_ratio,
                adjust_parameters=adjust_parameters,
                trainable=None if trainable is None else distinct_names(trainable),
            ),
            train_loss_key=train_loss_key,
            device=device,
            adjustment=adjustment,
            upload=upload,
            upload_dtype=upload_dtype,
        )
        self.array_names = (
            None if array_names is None else distinct_names(array_names, "array_names")
        )
        self._attendance = Attendance(wait_for_clients, when_missing)
        self._asked_who: set[int] = set()
        self._aggregate: ArrayRecord | None = None
        self._asked_to_evaluate: frozenset[int] | None = None
        super().__init__(
            fraction_fit=fraction_fit,
            fraction_evaluate=fraction_evaluate,
            min_fit_clients=min_fit_clients,
            min_evaluate_clients=min_evaluate_clients,
            min_available_clients=min_available_clients,
            evaluate_fn=evaluate_fn,
            on_fit_config_fn=on_fit_config_fn,
            on_evaluate_config_fn=on_evaluate_config_fn,
            accept_failures=accept_failures,
            initial_parameters=initial_parameters,
            fit_metrics_aggregation_fn=fit_metrics_aggregation_fn,
            evaluate_metrics_aggregation_fn=evaluate_metrics_aggregation_fn,
            inplace=inplace,
        )

    def __init_subclass__(cls) -> None:
        """Refuse one of Flower's strategies on top that would never let FedPW aggregate.

        Raises
        ------
        TypeError
            If it aggregates by itself. Those on FedOpt step on the aggregate of the class below.
        """
        super().__init_subclass__()
        for base in cls.__mro__[: cls.__mro__.index(FedPW)]:
            by_itself = "aggregate_fit" in vars(base) and not issubclass(base, FedOpt)
            if by_itself and base.__module__.startswith("flwr."):
                raise TypeError(
                    f"{cls.__name__} would aggregate with {base.__name__} alone: of Flower's "
                    "legacy strategies only FedAdam, FedAdagrad and FedYogi can stand on top of "
                    "FedPW"
                )
        place_in_front(StepOnTrainedFit, cls, FedOpt)

    def __repr__(self) -> str:
        """Name the strategy, as Flower's log shows it."""
        return f"FedPW(accept_failures={self.accept_failures})"

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
        return self.rounds.saved_state()

    def restore_state(self, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the method to what `saved_state` returned.

        Raises
        ------
        ValueError
            If it is not such a state.
        """
        self.rounds.restore_state(state, tensors)

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that a run must keep when it goes on from a checkpoint."""
        return self.rounds.fingerprint()

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """Log the settings, then as FedAvg.

        Raises
        ------
        ValueError
            If the strategy stands inside a wrapper that FedPW cannot work with.
        """
        refuse_incompatible_callers()
        self.rounds.log_settings()
        return super().initialize_parameters(client_manager)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Sample clients and send them the model, as FedAvg, with what they are to do to updates.

        Raises
        ------
        ValueError
            If the parameters are not those of `array_names`, cannot be decoded or are not finite,
            or something around the strategy cannot work with it.
        TypeError
            If the model holds complex arrays, or `trainable` names one that is not floating.
        """
        refuse_incompatible_callers()
        named = self._named(parameters)
        arrays = self.rounds.checked_model(server_round, named)
        if arrays is not named:
            parameters = _parameters(arrays)
        with self._present(client_manager, self.min_fit_clients):
            instructions = super().configure_fit(server_round, parameters, client_manager)
        if self.rounds.upload == "packed":
            for _, ins in instructions:
                refuse_clipping_of_packed(ins.config)
        nodes = [proxy.node_id for proxy, _ in instructions]
        strangers = set(self.rounds.strangers(nodes)) - self._asked_who
        self._asked_who |= strangers
        unknown = [proxy for proxy, _ in instructions if proxy.node_id in strangers]
        self.rounds.introduce(
            {
                proxy.node_id: client
                for proxy, client in zip(unknown, stated_identities(unknown), strict=True)
                if client is not None
            }
        )
        entries = self.rounds.begin(arrays, nodes)
        return [
            (proxy, FitIns(ins.parameters, {**ins.config, **entries[proxy.node_id]}))
            for proxy, ins in instructions
        ]

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Aggregate the round's results into the next model.

        Parameters
        ----------
        server_round : int
            Flower's round number, for the log.
        results : list[tuple[ClientProxy, FitRes]]
            Results, in any order.
        failures : list[tuple[ClientProxy, FitRes] | BaseException]
            Clients that failed.

        Returns
        -------
        tuple[Parameters | None, dict[str, Scalar]]
            The next model (the current one where no result can be used; None where failures are
            not accepted), and the aggregated metrics with FedPW's own, as in `fedpw_flwr.FedPW`;
            lists are JSON texts, because this API takes no lists.

        Raises
        ------
        UnusableRepliesError
            If all results of the first round have the same fault (`MissingLossError`: none reports
            the training loss), or three rounds from the start had none that can be used.
        RuntimeError
            If `configure_fit` was not called before, or the clients are ClientApp functions.
        """
        if self.state.rounds == 0:
            _refuse_client_app_functions(results, failures)
        if failures and not self.accept_failures:
            return None, {}
        answered = {proxy.node_id for proxy, _ in results}
        aggregated = self.rounds.finish(
            "aggregate_fit",
            server_round,
            [
                *(Answer(proxy.node_id, self._content(result)) for proxy, result in results),
                *_answers_of_failures(failures, self.rounds.asked_nodes - answered),
            ],
            _EXAMPLES_KEY,
        )
        parameters = self._handed_on(aggregated)
        if not aggregated.asked:
            return parameters, {}
        metrics: dict[str, Scalar] = {}
        used = {reply.node_id for reply in aggregated.good}
        usable = _users_metrics([result for proxy, result in results if proxy.node_id in used])
        if usable and self.fit_metrics_aggregation_fn is not None:
            metrics.update(self.fit_metrics_aggregation_fn(usable))
        round_results = [reply.result for reply in aggregated.good]
        metrics.update(_scalars(round_metrics(aggregated.step, round_results, aggregated.bad)))
        if isinstance(self, StepOnTrainedFit):
            self.lost_round_metrics = None if parameters else metrics
        return parameters, metrics

    def _handed_on(self, aggregated: Aggregated) -> Parameters | None:
        """Return the next model; to a server optimizer what it is to step on, and where from."""
        if not isinstance(self, StepOnTrainedFit):
            return _parameters(aggregated.arrays)
        self._aggregate = aggregated.arrays
        if aggregated.step is None:
            return None
        start = self.rounds.trained_start()
        self.current_weights = [array.numpy() for array in start.values()]
        return _parameters(self.rounds.trained(aggregated.arrays))

    def _after_step(self, stepped: Parameters | None) -> Parameters | None:
        """Return the whole model, with what the optimizer made of the trained arrays."""
        aggregate, self._aggregate = self._aggregate, None
        if aggregate is None:
            return stepped
        if stepped is None:
            return _parameters(aggregate)
        names = self.rounds.trained(aggregate)
        by_name = zip(names, map(array_of_npy, stepped.tensors), strict=True)
        return _parameters(self.rounds.after_step_on_top(ArrayRecord(dict(by_name)), aggregate))

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, Any]]:
        """Sample clients for evaluation, as FedAvg; remember whom."""
        instructions: list[tuple[ClientProxy, Any]] = []
        if self.fraction_evaluate > 0:
            with self._present(client_manager, self.min_evaluate_clients):
                instructions = super().configure_evaluate(server_round, parameters, client_manager)
        self._asked_to_evaluate = frozenset(proxy.node_id for proxy, _ in instructions)
        return instructions

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Average the evaluation results that can be used, as FedAvg.

        Returns
        -------
        tuple[float | None, dict[str, Scalar]]
            The weighted loss (None where no result can be used), and the aggregated metrics with
            ``fedpw-quarantined``, ``fedpw-failed`` and ``fedpw-empty``.
        """
        if failures and not self.accept_failures:
            return None, {}
        asked = self._asked_to_evaluate
        missing = (asked or frozenset()) - {proxy.node_id for proxy, _ in results}
        good, bad = self.rounds.screen_evaluation(
            "aggregate_evaluate",
            server_round,
            [
                *(Answer(proxy.node_id, _evaluation(result)) for proxy, result in results),
                *_answers_of_failures(failures, missing),
            ],
            asked,
            _EXAMPLES_KEY,
        )
        used = {reply.node_id for reply in good}
        usable = [(proxy, result) for proxy, result in results if proxy.node_id in used]
        loss: float | None = None
        metrics: dict[str, Scalar] = {}
        if usable:
            loss, metrics = super().aggregate_evaluate(server_round, usable, [])
            if loss is not None and not math.isfinite(loss):
                # Flower multiplies by the count before it divides, which a hostile loss overflows.
                total = sum(result.num_examples for _, result in usable)
                loss = math.fsum(
                    result.loss * (result.num_examples / total) for _, result in usable
                )
        return loss, {**metrics, **_scalars(round_metrics(None, [], bad))}

    @contextmanager
    def _present(self, clients: ClientManager, least: int) -> Iterator[None]:
        """Wait for the clients that are needed; need no more than there are."""
        needed = max(self.min_available_clients, least)
        there = self._attendance.wait(lambda: list(clients.all()), needed)
        with minima_of_at_most(self, _MINIMA, len(there)):
            yield

    def _named(self, parameters: Parameters) -> ArrayRecord:
        """See parameters as arrays by name, without copying them."""
        if parameters.tensor_type != _TENSOR_TYPE or not parameters.tensors:
            raise ValueError(
                f"the global model has {len(parameters.tensors)} tensors of the type "
                f"{parameters.tensor_type!r}: give FedPW(initial_parameters="
                "ndarrays_to_parameters(arrays)), or let the clients implement get_parameters"
            )
        if self.array_names is not None and len(self._names()) != len(parameters.tensors):
            raise ValueError(
                f"array_names has {len(self._names())} names, the model "
                f"{len(parameters.tensors)} arrays: name every one, in the order of the parameters"
            )
        return ArrayRecord(dict(self._arrays(parameters)))

    def _names(self) -> Sequence[str]:
        """Return the names of the model's arrays, without those that no client returns."""
        kept = self.rounds.array_names
        return [name for name in self.array_names or () if not kept or name in kept]

    def _arrays(self, parameters: Parameters) -> Iterator[tuple[str, Any]]:
        names = self._names()
        for place, data in enumerate(parameters.tensors):
            if place < len(names):
                name = names[place]
            else:
                name = f"surplus array {place}" if names else str(place)
            yield name, array_of_npy(data, parameters.tensor_type)

    def _content(self, result: FitRes) -> RecordDict:
        content = records_of_metrics({**result.metrics, _EXAMPLES_KEY: result.num_examples})
        content["arrays"] = ArrayRecord(dict(self._arrays(result.parameters)))
        return content


def _evaluation(result: EvaluateRes) -> RecordDict:
    own = {_EVALUATION_LOSS_KEY: result.loss, _EXAMPLES_KEY: result.num_examples}
    return records_of_metrics({**result.metrics, **own})


def _scalars(metrics: MetricRecord) -> dict[str, Scalar]:
    return {
        key: json.dumps(value) if isinstance(value, list) else value
        for key, value in metrics.items()
    }


def _users_metrics(results: Sequence[FitRes]) -> list[tuple[int, dict[str, Scalar]]]:
    """Reduce the metrics to those that all clients report, with finite numbers."""
    shared = [
        key
        for key in (results[0].metrics if results else ())
        if key != REPORT_KEY and all(_is_finite(result.metrics.get(key)) for result in results)
    ]
    return [
        (result.num_examples, {key: result.metrics[key] for key in shared}) for result in results
    ]


def _is_finite(value: Scalar | None) -> bool:
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def _parameters(arrays: ArrayRecord) -> Parameters:
    return Parameters(tensors=[array.data for array in arrays.values()], tensor_type=_TENSOR_TYPE)


def _answers_of_failures(
    failures: Sequence[tuple[ClientProxy, Any] | BaseException], missing: frozenset[int]
) -> list[Answer]:
    """Turn failures into answers, each of the node that failed.

    Flower does not say whose an exception is. Where nothing else tells, it may be any of those that
    are missing.
    """
    answers, nameless = [], []
    for failure in failures:
        if isinstance(failure, BaseException):
            node, reason = _node_of(failure), f"{type(failure).__name__}: {failure}"
        else:
            node, reason = failure[0].node_id, f"{failure[1].status.message}"
        if node is None:
            nameless.append(reason)
        else:
            answers.append(Answer(node, None, reason))
            missing = missing - {node}
    nodes = sorted(missing)
    for place, reason in enumerate(nameless):
        node = nodes[place] if place < len(nodes) else 0
        who = "" if len(nodes) == 1 else f"one of the nodes {nodes or 'asked'}: "
        answers.append(Answer(node, None, f"{who}{reason}"))
    return answers


def _node_of(failure: BaseException) -> int | None:
    """Return the node whose proxy an exception passed through on its way to Flower's server."""
    for frame, _ in traceback.walk_tb(failure.__traceback__):
        proxy = frame.f_locals.get("self")
        if isinstance(proxy, ClientProxy):
            return proxy.node_id
    return None


def _refuse_client_app_functions(
    results: Sequence[object],
    failures: Sequence[tuple[ClientProxy, Any] | BaseException],
) -> None:
    """Notice clients that a legacy server cannot talk to: ``@app.train`` functions.

    Raises
    ------
    RuntimeError
        If every client failed, and in the way in which those functions fail.
    """
    if results or not failures:
        return
    # A result with a status that is not OK comes from a Client of the legacy API.
    if not all(isinstance(failure, BaseException) for failure in failures):
        return
    text = [f"{type(failure).__name__}: {failure}" for failure in failures]
    if all(_OF_FUNCTIONS.search(line) for line in text):
        raise RuntimeError(
            "the clients are ClientApp functions (@app.train), which Flower's legacy server cannot "
            "talk to: run `from fedpw_flwr import FedPW` in a ServerApp with @app.main(), or give "
            "the clients a NumPyClient: ClientApp(client_fn=...). The first failure was: " + text[0]
        )
