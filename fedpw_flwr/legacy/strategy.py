"""FedPW as a strategy of Flower's legacy API, for NumPyClients under its server."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Unpack

from flwr.app import ArrayRecord
from flwr.common import EvaluateIns, EvaluateRes, FitIns, FitRes, Parameters, Scalar
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAdagrad, FedAdam, FedAvg, FedOpt, FedYogi

from fedpw_flwr.algorithm.settings import distinct_names
from fedpw_flwr.legacy.answers import (
    EXAMPLES_KEY,
    answers_of,
    as_parameters,
    as_scalars,
    evaluation_content,
    fit_content,
    named_arrays,
    named_model,
    refuse_client_app_functions,
    shared_metrics,
)
from fedpw_flwr.legacy.client_manager import stated_identities
from fedpw_flwr.rounds.attendance import Attendance
from fedpw_flwr.rounds.driver import Driver
from fedpw_flwr.rounds.metrics import reply_counts
from fedpw_flwr.strategy.compatibility import refuse_incompatible
from fedpw_flwr.strategy.fedpw_method import FedPWMethod, WithFedPW
from fedpw_flwr.strategy.options import LegacyFedPWOptions, split
from fedpw_flwr.strategy.step_on_top import Driven, StepOnTop, stand_beside

_STEP_ON_TOP = (FedOpt, FedAdam, FedAdagrad, FedYogi)
"""Flower's strategies that take a step on the aggregate of the class behind them."""


class StepOnTrained(StepOnTop):
    """Stands in front of an optimizer of the legacy API, behind the class that has both."""

    current_weights: Any

    lost_round_metrics: Any = None
    """Metrics of a round without a usable result: Flower's optimizers drop them."""

    def _step_from(self, start: ArrayRecord) -> None:
        self.current_weights = [array.numpy() for array in start.values()]

    def aggregate_fit(self, *arguments: Any, **named: Any) -> Any:
        """Aggregate and step; return the whole model."""
        stepped, metrics = super().aggregate_fit(*arguments, **named)  # type: ignore[misc]
        names = [] if self._aggregate is None else list(self.driver.trained(self._aggregate))
        whole = self.whole_model(None if stepped is None else named_arrays(stepped, names))
        parameters = None if whole is None else as_parameters(whole)
        return parameters, metrics or self.lost_round_metrics or {}


class FedPW(WithFedPW, Driven, FedAvg):
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
    avg_drop_rate, beta, train_loss_key, loss_source, clip_weights, adjust_parameters,
    adapt_weights, max_weight, max_loss_ratio
        The method, as in `fedpw_flwr.FedPW`. Where `adapt_weights` is False, clients are weighted
        by their number of examples.
    evaluate_loss_key : str (default: "loss")
        As in `fedpw_flwr.FedPW`; "loss" is the loss that ``evaluate`` returns, any other one of its
        metrics.
    trainable : Sequence[str] | None (default: None)
        Names of the trainable arrays; needs `array_names`.
    device, adjustment, upload, upload_dtype, wait_for_clients, when_missing
        As in `fedpw_flwr.FedPW`.
    observers : Sequence[Observer] (default: ())
        As in `fedpw_flwr.FedPW`; `CheckpointedServer` tells them, with or without checkpoints.
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
        self, *, array_names: Sequence[str] | None = None, **options: Unpack[LegacyFedPWOptions]
    ) -> None:
        of_method, rest = split(options, LegacyFedPWOptions)
        if options.get("trainable") is not None and array_names is None:
            raise ValueError(
                "trainable names arrays, but lists of parameters have no names: give "
                "array_names=list(model.state_dict()) with it"
            )
        of_method.setdefault("evaluate_loss_key", "loss")
        self.method = FedPWMethod(of_method)
        self.driver = Driver(self.method)
        if array_names is not None:
            array_names = distinct_names(array_names, "array_names")
        self.array_names = array_names
        self._attendance = Attendance(
            rest.pop("wait_for_clients", 3600.0), rest.pop("when_missing", "stop")
        )
        self.observers = tuple(rest.pop("observers", ()))
        self.in_our_server = False
        self._asked_who: set[int] = set()
        self._asked_to_evaluate: frozenset[int] | None = None
        super().__init__(**rest)
        self._check_evaluation()

    def __init_subclass__(cls) -> None:
        """Refuse a strategy beside this one that would keep it from working, with a TypeError."""
        super().__init_subclass__()
        never_called = {"configure_fit", "configure_evaluate", "aggregate_fit"}
        stand_beside(cls, FedPW, FedAvg, _STEP_ON_TOP, StepOnTrained, "aggregate_fit", never_called)

    def __repr__(self) -> str:
        """Name the strategy, as Flower's log shows it."""
        return f"FedPW(accept_failures={self.accept_failures})"

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """Log the settings, then as FedAvg; ValueError in a wrapper that cannot work with it."""
        refuse_incompatible()
        self.method.log_settings()
        return super().initialize_parameters(client_manager)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Begin a round: send the model to the clients that train, with what each is asked for.

        Raises as `Driver.begin`; also a ValueError if the parameters are not those of
        `array_names`, or something around the strategy cannot work with it.
        """
        if self.observers and not self.in_our_server:
            raise ValueError(
                "observers was given, but Flower's own server tells them nothing: give "
                "ServerAppComponents(server=CheckpointedServer(client_manager="
                "OrderedClientManager(), strategy=strategy), config=...), from fedpw_flwr.legacy"
            )
        config = self.on_fit_config_fn(server_round) if self.on_fit_config_fn else {}
        refuse_incompatible(self.method.upload, config)
        proxies: dict[int, ClientProxy] = {}

        def choose() -> list[int]:
            drawn = self._sample(client_manager, self.num_fit_clients, self.min_fit_clients)
            proxies.update((proxy.node_id, proxy) for proxy in drawn)
            return list(proxies)

        def ask(nodes: Sequence[int]) -> dict[int, int]:
            unknown = [node for node in nodes if node not in self._asked_who]
            self._asked_who.update(unknown)
            stated = stated_identities([proxies[node] for node in unknown])
            told = zip(unknown, stated, strict=True)
            return {node: client for node, client in told if client is not None}

        named = named_model(parameters, self._names())
        model, entries = self.driver.begin(server_round, named, choose, ask)
        if model is not named:
            parameters = as_parameters(model)
        return [
            (proxies[node], FitIns(parameters, {**config, **own})) for node, own in entries.items()
        ]

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Finish a round, as `fedpw_flwr.FedPW` does; None where failures are not accepted.

        Lists among the metrics are JSON texts, because this API takes no lists. Raises as
        `Driver.finish`; also a RuntimeError if the clients are ClientApp functions.
        """
        if self.state.rounds == 0:
            refuse_client_app_functions(results, failures)
        if failures and not self.accept_failures:
            return None, {}
        content_of = partial(fit_content, names=self._names())
        answers = answers_of(results, failures, self.driver.asked_nodes, content_of)
        finished = self.driver.finish("aggregate_fit", server_round, answers, EXAMPLES_KEY)
        arrays = self.handed_on(finished)
        parameters = None if arrays is None else as_parameters(arrays)
        if not self.driver.asked_nodes:
            return parameters, {}
        metrics: dict[str, Scalar] = {}
        used = {reply.node_id for reply in finished.good}
        usable = shared_metrics([result for proxy, result in results if proxy.node_id in used])
        if usable and self.fit_metrics_aggregation_fn is not None:
            metrics.update(self.fit_metrics_aggregation_fn(usable))
        metrics |= as_scalars({**finished.metrics, **reply_counts(finished.bad, "fedpw-")})
        self.lost_round_metrics = None if parameters else metrics
        return parameters, metrics

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Send the model to the clients that evaluate."""
        drawn: Sequence[ClientProxy] = ()
        config: dict[str, Scalar] = {}
        if self.fraction_evaluate > 0:
            if self.on_evaluate_config_fn is not None:
                config = self.on_evaluate_config_fn(server_round)
            drawn = self._sample(
                client_manager, self.num_evaluation_clients, self.min_evaluate_clients
            )
        self._asked_to_evaluate = frozenset(proxy.node_id for proxy in drawn)
        return [(proxy, EvaluateIns(parameters, config)) for proxy in drawn]

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Average the evaluation results that can be used, as FedAvg; no loss where none can."""
        if failures and not self.accept_failures:
            return None, {}
        asked = self._asked_to_evaluate
        answers = answers_of(results, failures, asked or frozenset(), evaluation_content)
        good, bad = self.driver.screen_evaluation(server_round, answers, asked, EXAMPLES_KEY)
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
        return loss, {**metrics, **as_scalars(reply_counts(bad, "fedpw-"))}

    def _sample(
        self, clients: ClientManager, size_of: Callable[[int], tuple[int, int]], least: int
    ) -> list[ClientProxy]:
        """Wait for clients, and let the client manager draw from those that are there."""
        needed = max(self.min_available_clients, least)
        there = len(self._attendance.wait(lambda: list(clients.all()), needed))
        size, needed = size_of(there)
        return clients.sample(min(size, there), min(needed, there))

    def _names(self) -> Sequence[str]:
        """Return the names of the model's arrays, without those that no client returns."""
        kept = self.driver.array_names
        return [name for name in self.array_names or () if not kept or name in kept]
