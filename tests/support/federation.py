"""One small federation in this process, for both of Flower's server APIs and any method.

A client is a function from the message it was sent to the replies it gives, as in `ClientsGrid`.
Under the legacy API the same client stands behind a ClientProxy, which turns Flower's FitIns into
that message, and its reply into a FitRes. Servers, strategies and client managers are real.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import (
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetPropertiesIns,
    GetPropertiesRes,
    Parameters,
)
from flwr.server.client_proxy import ClientProxy
from flwr.server.server import evaluate_clients, fit_clients

import fedpw_flwr
from fedpw_flwr import legacy
from fedpw_flwr.wire.arrays import array_of_npy
from fedpw_flwr.wire.records import IDENTITY_QUERY
from support.adjusting_clients import following
from support.baselines_federation import BUILDS
from support.grid import Client, ClientsGrid
from support.legacy_federation import OK, PlainClient, manager_of, run_server, with_server_round
from support.records import NDArrays, array_record, ndarrays
from support.small_model import MODEL as SMALL_MODEL
from support.small_model import evaluate_reply, train_reply

MODEL: NDArrays = {
    **SMALL_MODEL,
    "conv.weight": np.linspace(-1.0, 1.0, 96, dtype=np.float32).reshape(6, 4, 4),
}
"""Trainable tensors, a buffer and a counter; the last is large enough to be packed."""

COUNTS = ("quarantined", "failed", "empty")

PLACEMENTS: dict[str, dict[str, Any]] = {
    "server": {},
    "client": {"adjustment": "client"},
    "packed": {"adjustment": "client", "upload": "packed"},
}
"""Options by where updates are adjusted."""


class Round(NamedTuple):
    """What became of a round: the next model, and the metrics with lists as lists."""

    arrays: ArrayRecord
    metrics: dict[str, Any]


@dataclass
class Run:
    """What became of a whole run; metrics by round."""

    arrays: ArrayRecord
    train: dict[int, dict[str, Any]] = field(default_factory=dict)
    evaluate: dict[int, dict[str, Any]] = field(default_factory=dict)


Answers = list[tuple[int, Any]]
"""What came back from each node, as the API has it."""

Clients = Mapping[int, Client]


class Federation:
    """A method under the Message API, over a `ClientsGrid`."""

    prefix = "fedpw-"
    """Stands before the counts of a round."""

    def __init__(self, name: str, build: Callable[..., Any]) -> None:
        self.name = name
        self.build = build

    def strategy(self, **options: Any) -> Any:
        """Build the strategy; options have the names of the Message API."""
        return self.build(**options)

    def ask(
        self, strategy: Any, clients: Clients, arrays: ArrayRecord, server_round: int
    ) -> Answers:
        """Play the first half of a training round."""
        grid = ClientsGrid(clients)
        messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
        replies = grid.send_and_receive(messages)
        return [(reply.metadata.src_node_id, reply) for reply in replies]

    def finish(self, strategy: Any, answers: Answers, server_round: int) -> Round:
        """Play the second half."""
        arrays, metrics = strategy.aggregate_train(server_round, [reply for _, reply in answers])
        return Round(arrays, dict(metrics))

    def evaluate_round(
        self, strategy: Any, clients: Clients, server_round: int = 1
    ) -> dict[str, Any]:
        """Evaluate MODEL at the clients."""
        grid = ClientsGrid(clients)
        asked = strategy.configure_evaluate(server_round, array_record(MODEL), ConfigRecord(), grid)
        return dict(strategy.aggregate_evaluate(server_round, grid.send_and_receive(asked)))

    def run(
        self, strategy: Any, clients: Clients, num_rounds: int, arrays: ArrayRecord | None = None
    ) -> Run:
        """Let Flower's own server play all rounds."""
        arrays = array_record(MODEL) if arrays is None else arrays
        result = strategy.start(ClientsGrid(clients), arrays, num_rounds=num_rounds)
        return Run(
            result.arrays,
            {number: dict(one) for number, one in result.train_metrics_clientapp.items()},
            {number: dict(one) for number, one in result.evaluate_metrics_clientapp.items()},
        )

    def train_round(
        self,
        strategy: Any,
        clients: Clients,
        arrays: ArrayRecord | None = None,
        server_round: int = 1,
        arrange: Callable[[Answers], Answers] = list,
    ) -> Round:
        """Play one training round as Flower's server does; from MODEL where nothing is given."""
        arrays = array_record(MODEL) if arrays is None else arrays
        answers = arrange(self.ask(strategy, clients, arrays, server_round))
        return self.finish(strategy, answers, server_round)

    def train_rounds(
        self, strategy: Any, clients: Clients, count: int, arrays: ArrayRecord | None = None
    ) -> list[Round]:
        """Play rounds in a row, each from the model of the one before."""
        rounds: list[Round] = []
        for server_round in range(1, count + 1):
            arrays = rounds[-1].arrays if rounds else arrays
            rounds.append(self.train_round(strategy, clients, arrays, server_round))
        return rounds

    def counts(self, metrics: Mapping[str, Any]) -> tuple[int, ...]:
        """Return how many replies were quarantined, failed and were empty."""
        return tuple(metrics[self.prefix + count] for count in COUNTS)

    def decided(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return all metrics but those counts."""
        own = {self.prefix + count for count in COUNTS}
        return {key: value for key, value in metrics.items() if key not in own}


LEGACY_OPTIONS = {
    "fraction_train": "fraction_fit",
    "min_train_nodes": "min_fit_clients",
    "min_evaluate_nodes": "min_evaluate_clients",
    "min_available_nodes": "min_available_clients",
}


class LegacyFederation(Federation):
    """A strategy of the legacy API under Flower's `Server`."""

    def strategy(self, **options: Any) -> Any:
        defaults = {
            "array_names": list(MODEL),
            "on_fit_config_fn": with_server_round,
            "evaluate_metrics_aggregation_fn": weighted_mean,
        }
        named = {LEGACY_OPTIONS.get(name, name): value for name, value in options.items()}
        return self.build(**{**defaults, **named})

    def ask(
        self, strategy: Any, clients: Clients, arrays: ArrayRecord, server_round: int
    ) -> Answers:
        proxies = proxies_of(clients, list(arrays))
        asked = strategy.configure_fit(server_round, parameters_of(arrays), manager_of(proxies))
        results, failures = fit_clients(asked, max_workers=None, timeout=None, group_id=1)
        told = sorted(results, key=lambda one: one[0].node_id)
        return [(proxy.node_id, (proxy, result)) for proxy, result in told] + [
            (0, failure) for failure in failures if not isinstance(failure, Silence)
        ]

    def finish(self, strategy: Any, answers: Answers, server_round: int) -> Round:
        results = [answer for node, answer in answers if node]
        failures = [answer for node, answer in answers if not node]
        parameters, metrics = strategy.aggregate_fit(server_round, results, failures)
        return Round(arrays_of(strategy, parameters), with_lists(metrics))

    def evaluate_round(
        self, strategy: Any, clients: Clients, server_round: int = 1
    ) -> dict[str, Any]:
        proxies = proxies_of(clients, list(MODEL))
        asked = strategy.configure_evaluate(
            server_round, parameters_of(array_record(MODEL)), manager_of(proxies)
        )
        results, failures = evaluate_clients(asked, max_workers=None, timeout=None, group_id=1)
        heard = [failure for failure in failures if not isinstance(failure, Silence)]
        loss, metrics = strategy.aggregate_evaluate(server_round, results, heard)
        return metrics if loss is None else {"loss": loss, **metrics}

    def run(
        self, strategy: Any, clients: Clients, num_rounds: int, arrays: ArrayRecord | None = None
    ) -> Run:
        arrays = array_record(MODEL) if arrays is None else arrays
        strategy.initial_parameters = parameters_of(arrays)
        history, parameters = run_server(strategy, proxies_of(clients, list(arrays)), num_rounds)
        run = Run(arrays_of(strategy, parameters))
        for name, told in history.metrics_distributed_fit.items():
            for number, value in told:
                run.train.setdefault(number, {}).update(with_lists({name: value}))
        for name, told in history.metrics_distributed.items():
            for number, value in told:
                run.evaluate.setdefault(number, {})[name] = value
        return run


class Silence(Exception):
    """What a legacy client that never answers raises here; Flower's server would wait for it."""


def proxies_of(clients: Clients, names: Sequence[str]) -> list[ClientProxy]:
    """Put each client behind Flower's legacy interface."""
    return [_Proxy(node, client, names) for node, client in clients.items()]


class _Proxy(PlainClient):
    """Asks the client by message."""

    def __init__(self, node_id: int, client: Client, names: Sequence[str]) -> None:
        super().__init__(
            node_id,
            lambda node, ins: fit_result_of(self._ask("train", ins)),
            lambda node, ins: evaluate_result_of(self._ask("evaluate", ins)),
        )
        self._client = client
        self._array_names = names

    def _ask(self, kind: str, ins: FitIns | EvaluateIns | None = None) -> RecordDict:
        content = RecordDict()
        if ins is not None:
            content["arrays"] = _named(self._array_names, ins.parameters)
            content["config"] = ConfigRecord(dict(ins.config))
        replies = list(self._client(Message(content, self.node_id, kind)))
        if not replies:
            raise Silence
        if replies[0].has_error():
            raise RuntimeError(replies[0].error.reason)
        return replies[0].content

    def get_properties(
        self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None
    ) -> GetPropertiesRes:
        told = _scalars(self._ask(IDENTITY_QUERY))
        return GetPropertiesRes(OK, {key: told[key] for key in ("client-id",) if key in told})


def fit_result_of(content: RecordDict) -> FitRes:
    """Return what a NumPyClient would have returned instead of a reply."""
    arrays = list(next(iter(content.array_records.values()), ArrayRecord()).values())
    types = {array.stype for array in arrays} - {"numpy.ndarray"} or {"numpy.ndarray"}
    metrics = _scalars(content)
    examples: Any = metrics.pop("num-examples", 10)
    return FitRes(OK, Parameters([array.data for array in arrays], types.pop()), examples, metrics)


def evaluate_result_of(content: RecordDict) -> EvaluateRes:
    metrics = _scalars(content)
    loss: Any = metrics.pop("loss", 0.0)
    return EvaluateRes(OK, loss, metrics.pop("num-examples", 10), metrics)


def _scalars(content: RecordDict) -> dict[str, Any]:
    records: list[Any] = [*content.metric_records.values(), *content.config_records.values()]
    return {key: value for record in records for key, value in record.items()}


def _named(names: Sequence[str], parameters: Parameters) -> ArrayRecord:
    arrays = [array_of_npy(data, parameters.tensor_type) for data in parameters.tensors]
    return ArrayRecord(dict(zip(names, arrays, strict=True)))


def parameters_of(arrays: ArrayRecord) -> Parameters:
    return Parameters([array.data for array in arrays.values()], "numpy.ndarray")


def arrays_of(strategy: Any, parameters: Parameters) -> ArrayRecord:
    names = strategy.array_names or [str(index) for index in range(len(parameters.tensors))]
    return _named(list(names), parameters)


def with_lists(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Read the lists that a legacy strategy writes as texts."""
    return {
        key: json.loads(value) if isinstance(value, str) and value.startswith("[") else value
        for key, value in metrics.items()
    }


def weighted_mean(results: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """Average a legacy evaluation's metrics, those that all report, as the Message API does."""
    total = sum(count for count, _ in results)
    return {
        name: sum(count * metrics[name] for count, metrics in results) / total
        for name, value in results[0][1].items()
        if isinstance(value, int | float) and all(name in metrics for _, metrics in results)
    }


MESSAGE = Federation("Message API", fedpw_flwr.FedPW)
LEGACY = LegacyFederation("legacy API", legacy.FedPW)
APIS: list[Federation] = [MESSAGE, LEGACY]


class BaselineFederation(Federation):
    prefix = ""


BASELINES = [BaselineFederation(name, build) for name, build in BUILDS.items()]

both_apis = pytest.mark.parametrize("api", APIS, ids=lambda api: api.name)
"""Gives a test `api`: FedPW under each of Flower's APIs."""

every_method = pytest.mark.parametrize("api", [*APIS, *BASELINES], ids=lambda api: api.name)
"""Gives a test `api`: FedPW under both APIs, and each baseline."""

placements = pytest.mark.parametrize("placement", PLACEMENTS)


def known_reply(message: Message, **content: Any) -> Message:
    """The reply of a well-behaved client that says who it is: 10 less than its node."""
    content.setdefault("client_id", message.metadata.dst_node_id - 10)
    return train_reply(message, **content)


def answering(train: Callable[..., Message] = known_reply, **content: Any) -> Client:
    """A client that adjusts its update where it is asked to; `content` changes its reply."""
    adjusted = following(lambda message: train(message, **content))

    def client(message: Message) -> Iterable[Message]:
        if message.metadata.message_type == "train":
            return adjusted(message)
        return [evaluate_reply(message)]

    return client


honest = answering()


def everyone(nodes: Iterable[int], others: Mapping[int, Client] | None = None) -> dict[int, Client]:
    """Honest clients at nodes, and others at some of them or beside them."""
    return {**dict.fromkeys(nodes, honest), **(others or {})}


def memory(strategy: Any) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Everything a strategy carries over, in a form that compares by value."""
    state, tensors = strategy.driver.saved_state()
    return state, {name: tensor.tolist() for name, tensor in tensors.items()}


def warnings(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelname == "WARNING"]


def assert_sound(arrays: ArrayRecord, start: NDArrays = MODEL) -> None:
    """The model is finite, and has the names, shapes and dtypes it began with."""
    model = ndarrays(arrays)
    assert list(model) == list(start)
    for name, array in model.items():
        assert (array.shape, array.dtype) == (start[name].shape, start[name].dtype), name
        assert np.isfinite(array).all(), name


def assert_sound_metrics(metrics: Mapping[str, Any]) -> None:
    """A round's metrics are finite, and its weights are on the simplex."""
    MetricRecord.inflate(MetricRecord(dict(metrics)).deflate())
    for key, value in metrics.items():
        assert np.isfinite(value).all(), key
    weights = metrics.get("fedpw-weight", [1.0])
    assert math.fsum(weights) == pytest.approx(1.0, abs=1e-9)
    assert min(weights) >= 0
