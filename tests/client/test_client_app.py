"""numpy_client_app: NumPyClients under any Message-API strategy, from one message to whole runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.serverapp.strategy import FedAvg, FedProx, Result
from support.clients import (
    FLOATS,
    NODES,
    Arrays,
    NoisyClient,
    answer,
    arrays_of,
    bits,
    context_of,
    grid_of,
    message_to,
    metrics_of,
    request_entries,
    train_message,
)
from support.records import NDArrays, array_record, ndarrays, payloads
from support.small_model import MODEL

from fedpw_flwr import FedPW, FedPWClient, numpy_client_app
from fedpw_flwr.wire.adjustment import REPORT_KEY

Config = dict[str, Any]
Fitted = tuple[Arrays, int, Config]
Wrap = Callable[[NumPyClient], NumPyClient]


class Told(NumPyClient):
    """Returns what it was told to, and remembers what it was called with."""

    def __init__(self, metrics: Config | None = None, **results: Any) -> None:
        self.metrics = {"train_loss": 0.5} if metrics is None else metrics
        self.results = results
        self.calls: list[tuple[str, Arrays, Config]] = []

    def get_properties(self, config: Config) -> Config:
        self.calls.append(("get_properties", [], config))
        return {"name": "told", "cores": 2, "gpu": False}

    def fit(self, parameters: Arrays, config: Config) -> Any:
        self.calls.append(("fit", parameters, config))
        return self.results.get("fit", (parameters, 10, self.metrics))

    def evaluate(self, parameters: Arrays, config: Config) -> Any:
        self.calls.append(("evaluate", parameters, config))
        return self.results.get("evaluate", (0.25, 20, self.metrics))


def unwrapped(client: NumPyClient) -> NumPyClient:
    return client


def noisy_app(wrap: Wrap = FedPWClient) -> ClientApp:
    return numpy_client_app(lambda context: wrap(NoisyClient(context.node_id)))


# One message


def test_training_gives_the_client_the_arrays_in_their_order_and_names_what_comes_back() -> None:
    class Negates(Told):
        def fit(self, parameters: Arrays, config: Config) -> Fitted:
            super().fit(parameters, config)
            return [-array for array in parameters], 7, {"train_loss": 0.5}

    client = Negates()
    reply = answer(numpy_client_app(lambda context: client), train_message(MODEL, {}))
    ((method, parameters, _),) = client.calls
    assert method == "fit"
    assert bits(parameters) == bits(list(MODEL.values()))
    assert set(reply.content) == {"arrays", "metrics"}
    expected = {name: np.asarray(-array) for name, array in MODEL.items()}
    assert payloads(arrays_of(reply)) == payloads(array_record(expected))
    assert metrics_of(reply) == {"num-examples": 7, "train_loss": 0.5}


def test_a_client_may_write_to_the_arrays_it_is_given() -> None:
    class Overwrites(Told):
        def fit(self, parameters: Arrays, config: Config) -> Fitted:
            for array in parameters:
                array[...] = 1
            return parameters, 7, {"train_loss": 0.5}

    message = train_message(MODEL, {})
    before = payloads(arrays_of(message))
    reply = numpy_client_app(lambda context: Overwrites())(message, context_of(NODES[0]))
    assert payloads(arrays_of(message)) == before
    assert all((array == 1).all() for array in ndarrays(arrays_of(reply)).values())


CONFIG: Config = {
    **{"lr": 0.1, "epochs": 3, "name": "x", "flag": True, "blob": b"\0\1"},
    **{"sizes": [1, 2], "rates": [0.5], "names": ["a"], "flags": [True, False], "blobs": [b"z"]},
}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("wrap", [FedPWClient, unwrapped], ids=["wrapped", "plain"])
def test_configuration_entries_of_every_type_reach_the_client(kind: str, wrap: Wrap) -> None:
    inner = Told()
    answer(numpy_client_app(lambda context: wrap(inner)), train_message(MODEL, CONFIG, kind))
    ((_, _, config),) = inner.calls
    assert config == {"server-round": 1, **CONFIG}
    assert {key: type(config[key]) for key in CONFIG} == {
        key: type(value) for key, value in CONFIG.items()
    }


def test_evaluation_reports_the_loss_the_examples_and_what_is_no_number_apart() -> None:
    client = Told({"accuracy": np.float32(0.75), "note": "x", "flag": True})
    message = train_message(MODEL, CONFIG, "evaluate")
    reply = answer(numpy_client_app(lambda context: client), message)
    ((method, parameters, _),) = client.calls
    assert method == "evaluate"
    assert bits(parameters) == bits(list(MODEL.values()))
    assert set(reply.content) == {"metrics", "other-metrics"}
    assert metrics_of(reply) == {"eval_loss": 0.25, "num-examples": 20, "accuracy": 0.75}
    assert dict(reply.content["other-metrics"]) == {"note": "x", "flag": True}


def test_a_query_asks_for_the_properties() -> None:
    client = Told()
    content = RecordDict({"question": ConfigRecord({"which": "all"})})
    reply = answer(numpy_client_app(lambda context: client), message_to(content, "query"))
    assert client.calls == [("get_properties", [], {"which": "all"})]
    assert dict(reply.content["properties"]) == {"name": "told", "cores": 2, "gpu": False}


def test_the_report_and_the_client_id_have_records_of_their_own() -> None:
    app = numpy_client_app(lambda context: FedPWClient(NoisyClient(11), client_id=4))
    reply = answer(app, train_message(MODEL, request_entries(0.3)))
    assert set(reply.content) == {"arrays", "metrics", "identity", REPORT_KEY}
    assert dict(reply.content["identity"]) == {"client-id": 4, "answers": True}
    assert isinstance(reply.content[REPORT_KEY][REPORT_KEY], bytes)
    assert set(metrics_of(reply)) == {"num-examples", "train_loss"}
    evaluation = answer(app, train_message(MODEL, {}, "evaluate"))
    assert set(evaluation.content) == {"metrics", "identity"}


def test_the_client_is_built_anew_for_every_message_from_its_nodes_context() -> None:
    contexts: list[Context] = []

    def client_fn(context: Context) -> NumPyClient:
        contexts.append(context)
        return Told()

    app = numpy_client_app(client_fn)
    messages = [train_message(MODEL, {}, kind) for kind in ("train", "evaluate", "train")]
    messages.append(message_to(RecordDict(), "query"))
    for message in messages:
        app(message, context_of(12))
    assert [context.node_id for context in contexts] == [12] * 4


def test_mods_stand_around_training_and_evaluation_the_first_outermost() -> None:
    passed: list[str] = []

    def named(name: str) -> Mod:
        def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
            passed.append(f"{name} in")
            reply = call_next(message, context)
            passed.append(f"{name} out")
            return reply

        return mod

    app = numpy_client_app(lambda context: Told(), mods=[named("a"), named("b")])
    for kind in ("train", "evaluate"):
        passed.clear()
        answer(app, train_message(MODEL, {}, kind))
        assert passed == ["a in", "b in", "b out", "a out"]


@pytest.mark.parametrize(
    "client_fn", [None, Told(), "client_fn"], ids=["nothing", "client", "text"]
)
def test_something_that_builds_no_client_is_refused_at_once(client_fn: Any) -> None:
    with pytest.raises(TypeError, match="a function from Context to NumPyClient"):
        numpy_client_app(client_fn)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_factory_that_calls_to_client_is_told_not_to(kind: str) -> None:
    app = numpy_client_app(lambda context: FedPWClient(Told()).to_client())  # type: ignore[return-value]
    with pytest.raises(TypeError, match=r"return the NumPyClient itself, without \.to_client"):
        answer(app, train_message(MODEL, {}, kind))


@pytest.mark.parametrize(
    ("kind", "results", "complaint"),
    [
        ("train", {"fit": None}, "fit must return"),
        ("train", {"fit": ([], 1)}, "fit must return"),
        ("evaluate", {"evaluate": None}, "evaluate must return"),
        ("evaluate", {"evaluate": 0.5}, "evaluate must return"),
        ("evaluate", {"evaluate": (0.5, 10)}, "evaluate must return"),
    ],
)
def test_a_client_that_returns_something_else_is_told_what_to_return(
    kind: str, results: Config, complaint: str
) -> None:
    app = numpy_client_app(lambda context: Told(None, **results))
    with pytest.raises(TypeError, match=complaint):
        answer(app, train_message(MODEL, {}, kind))


@pytest.mark.parametrize("count", [0, 3, 6])
@pytest.mark.parametrize("wrap", [FedPWClient, unwrapped], ids=["wrapped", "plain"])
def test_another_number_of_arrays_is_left_to_the_server(count: int, wrap: Wrap) -> None:
    result = ([np.full(2, index) for index in range(count)], 10, {"train_loss": 0.5})
    app = numpy_client_app(lambda context: wrap(Told(fit=result)))
    reply = ndarrays(arrays_of(answer(app, train_message(MODEL, {}))))
    assert list(reply) == [*MODEL, "surplus array 4", "surplus array 5"][:count]
    assert bits(list(reply.values())) == bits(result[0])


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["one", "two"], r"2 ArrayRecords.*one.*two"),
        (["fitins.parameters"], r"legacy strategy.*FedPWClient\(client\)\.to_client"),
    ],
)
def test_another_message_than_one_with_one_model_is_an_error(
    names: list[str], complaint: str
) -> None:
    content = RecordDict({name: array_record(MODEL) for name in names})
    with pytest.raises(ValueError, match=complaint):
        answer(numpy_client_app(lambda context: Told()), message_to(content))


# Whole federations


def run(strategy: FedAvg, app: Any, model: NDArrays = FLOATS, rounds: int = 4) -> Result:
    grid = grid_of(app)
    # Flower's strategies sum in the order of arrival, and sample nodes in any order.
    random.seed(rounds)
    grid.arrange = lambda replies: sorted(replies, key=lambda reply: reply.metadata.src_node_id)
    return strategy.start(grid=grid, initial_arrays=array_record(model), num_rounds=rounds)


def numbers(result: Result) -> list[dict[int, dict[str, Any]]]:
    """All metrics of a run."""
    return [
        {server_round: dict(metrics) for server_round, metrics in of_clients.items()}
        for of_clients in (result.train_metrics_clientapp, result.evaluate_metrics_clientapp)
    ]


STRATEGIES: dict[str, Callable[[], FedAvg]] = {
    "FedAvg": FedAvg,
    "FedProx": lambda: FedProx(proximal_mu=0.1),
    "FedPW on the server": FedPW,
    "FedPW without adjustment": lambda: FedPW(adjust_parameters=False),
}


@pytest.mark.parametrize("new_strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_server_that_asks_for_nothing_gets_from_wrapped_clients_what_plain_ones_send(
    new_strategy: Callable[[], FedAvg],
) -> None:
    wrapped, plain = (run(new_strategy(), noisy_app(wrap)) for wrap in (FedPWClient, unwrapped))
    assert payloads(wrapped.arrays) == payloads(plain.arrays)
    assert numbers(wrapped) == numbers(plain)
    assert sorted(wrapped.train_metrics_clientapp) == [1, 2, 3, 4]
    assert sorted(wrapped.evaluate_metrics_clientapp) == [1, 2, 3, 4]
    start, end = array_record(FLOATS), wrapped.arrays
    assert payloads(start) != payloads(end)


@pytest.mark.parametrize("new_strategy", [FedAvg, FedPW], ids=["FedAvg", "FedPW"])
@pytest.mark.parametrize("wrap", [FedPWClient, unwrapped], ids=["wrapped", "plain"])
def test_clients_that_cannot_evaluate_do_not_end_a_run(
    new_strategy: Callable[[], FedAvg], wrap: Wrap
) -> None:
    class OnlyFit(NumPyClient):
        def __init__(self, node: int) -> None:
            self.node = node

        def fit(self, parameters: Arrays, config: Config) -> Any:
            return NoisyClient(self.node).fit(parameters, config)

    app = numpy_client_app(lambda context: wrap(OnlyFit(context.node_id)))
    result = run(new_strategy(), app, rounds=2)
    assert sorted(result.train_metrics_clientapp) == [1, 2]
    for metrics in result.evaluate_metrics_clientapp.values():
        # Flower's NumPyClient.evaluate returns a loss of 0.0, which nobody measured.
        assert "eval_loss" not in metrics
