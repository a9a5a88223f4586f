"""FedPWClient: a NumPyClient around a NumPyClient, called by Flower's legacy message handler."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import (
    Code,
    EvaluateIns,
    FitIns,
    FitRes,
    GetParametersIns,
    GetPropertiesIns,
    ndarrays_to_parameters,
)
from flwr.compat.client.client import (
    maybe_call_evaluate,
    maybe_call_fit,
    maybe_call_get_parameters,
    maybe_call_get_properties,
)
from flwr.compat.common import recorddict_compat as compat
from support.clients import (
    NODES,
    Arrays,
    NoisyClient,
    answer,
    as_list,
    bits,
    message_to,
    request_entries,
)
from support.small_model import MODEL

from fedpw_flwr import FedPWClient
from fedpw_flwr.wire.adjustment import CONSENSUS_KEY, REPORT_KEY, REQUEST_KEY, AdjustmentReport

Config = dict[str, Any]
Fitted = tuple[Arrays, int, Config]

CONFIG: Config = {"server-round": 1, "lr": 0.1, "name": "x", "flag": True, "blob": b"\0\1"}


class FullClient(NoisyClient):
    """Implements everything, remembers what it was called with, and has attributes of its own."""

    def __init__(self, node: int = NODES[0]) -> None:
        super().__init__(node)
        self.calls: list[tuple[str, Config]] = []
        self._secret = 7

    @property
    def doubled(self) -> int:
        return 2 * self.node

    def get_properties(self, config: Config) -> Config:
        self.calls.append(("get_properties", config))
        return {"node": self.node, "kind": "full", **config}

    def get_parameters(self, config: Config) -> Arrays:
        self.calls.append(("get_parameters", config))
        return as_list(MODEL)

    def fit(self, parameters: Arrays, config: Config) -> Fitted:
        self.calls.append(("fit", config))
        return super().fit(parameters, config)

    def evaluate(self, parameters: Arrays, config: Config) -> tuple[float, int, Config]:
        self.calls.append(("evaluate", config))
        return super().evaluate(parameters, config)


class Trained(NumPyClient):
    """Returns what a function makes of its parameters, with the metrics it was given."""

    def __init__(self, train: Callable[[Arrays], Any], **metrics: Any) -> None:
        self._train = train
        self._metrics = metrics

    def fit(self, parameters: Arrays, config: Config) -> Fitted:
        return self._train(parameters), 10, dict(self._metrics)


def moved(parameters: Arrays) -> Arrays:
    return NoisyClient(NODES[0]).fit(parameters, {"server-round": 1})[0]


def moved_in_place(parameters: Arrays) -> Arrays:
    for array, after in zip(parameters, moved(parameters), strict=True):
        array[...] = after
    return parameters


def members(index: int) -> Any:
    size = list(MODEL.values())[index].size
    return np.arange(size) % 3 == 0


ADJUSTMENT = {0: (members(0), 1.5), 1: (members(1), 1.25)}
REQUESTS = {
    "nothing": {},
    "first round": request_entries(0.0),
    "mask": request_entries(0.3),
    "mask and rescale": request_entries(0.3, ADJUSTMENT),
    "packed": request_entries(0.3, ADJUSTMENT, "packed"),
}
asked = pytest.mark.parametrize("entries", REQUESTS.values(), ids=REQUESTS)


def app_of(client_fn: Callable[[], NumPyClient]) -> ClientApp:
    """A ClientApp of the legacy API."""
    return ClientApp(client_fn=lambda context: client_fn().to_client())


def fitted(app: ClientApp, config: Config, model: Arrays | None = None) -> FitRes:
    """What Flower's legacy message handler makes of a training message."""
    parameters = ndarrays_to_parameters(as_list(MODEL) if model is None else model)
    content = compat.fitins_to_recorddict(FitIns(parameters, config), keep_input=True)
    reply = answer(app, message_to(content))
    return compat.recorddict_to_fitres(reply.content, keep_input=True)


def without_report(metrics: Config) -> Config:
    return {key: value for key, value in metrics.items() if key != REPORT_KEY}


# What it does


def test_where_the_server_asks_for_nothing_the_reply_is_the_inner_clients() -> None:
    wrapped = fitted(app_of(lambda: FedPWClient(NoisyClient(11))), CONFIG)
    assert wrapped == fitted(app_of(lambda: NoisyClient(11)), CONFIG)


@asked
def test_a_client_that_trains_in_place_sends_the_same(entries: Config) -> None:
    results = [
        fitted(app_of(lambda: FedPWClient(Trained(train, train_loss=0.5))), {**CONFIG, **entries})  # noqa: B023
        for train in (moved, moved_in_place)
    ]
    assert results[0] == results[1]


@asked
def test_a_wrapper_built_for_every_message_sends_the_same_as_one_that_stays(
    entries: Config,
) -> None:
    kept = FedPWClient(NoisyClient(11))
    configs = [{**CONFIG, **entries, "server-round": number} for number in (1, 2, 3)]
    fresh = [fitted(app_of(lambda: FedPWClient(NoisyClient(11))), config) for config in configs]
    before = dict(vars(kept))
    assert [fitted(app_of(lambda: kept), config) for config in configs] == fresh
    assert [fitted(app_of(lambda: kept), config) for config in configs[::-1]] == fresh[::-1]
    assert vars(kept) == before


def test_numbers_in_place_of_0d_arrays_are_taken() -> None:
    start = [np.zeros(10), np.array(1.5), np.array(3)]
    client = FedPWClient(Trained(lambda _: [np.ones(10), np.float64(2.5), 4], train_loss=0.5))
    sent, _, _ = client.fit(start, dict(REQUESTS["first round"]))
    assert bits(sent) == bits([np.ones(10), np.array(2.5), np.array(4)])


@pytest.mark.parametrize(
    "train",
    [
        lambda arrays: arrays[:-1],
        lambda arrays: [*arrays, arrays[0]],
        lambda arrays: [arrays[0].T, *arrays[1:]],
        lambda arrays: [arrays[0].astype(np.int32), *arrays[1:]],
        lambda arrays: [np.full((6, 4), "w"), *arrays[1:]],
        lambda arrays: arrays[::-1],
        lambda arrays: [],
    ],
    ids=["too few", "too many", "transposed", "integers", "text", "another order", "none"],
)
def test_another_model_than_was_sent_goes_to_the_server_as_trained(
    train: Callable[[Arrays], Arrays],
) -> None:
    client = FedPWClient(Trained(train, train_loss=0.5))
    sent, _, metrics = client.fit(as_list(MODEL), {**CONFIG, **REQUESTS["mask"]})
    assert bits(sent) == bits(train(as_list(MODEL)))
    assert metrics == {"train_loss": 0.5}


@pytest.mark.parametrize(
    "result",
    [None, (), ([], 1), ([], 1, {}, 2), ({}, 1, {}), ([], 1, None), (None, 1, {})],
    ids=repr,
)
def test_something_else_than_arrays_count_and_metrics_is_an_error(result: Any) -> None:
    class Odd(NumPyClient):
        def fit(self, parameters: Arrays, config: Config) -> Any:
            return result

    with pytest.raises(TypeError, match="inner client must return"):
        FedPWClient(Odd()).fit(as_list(MODEL), dict(CONFIG))


# The loss


def test_the_loss_is_the_metric_that_loss_key_names() -> None:
    client = FedPWClient(Trained(moved, ce=0.25, train_loss=9.0, accuracy=0.5), loss_key="ce")
    _, _, metrics = client.fit(as_list(MODEL), dict(CONFIG))
    assert metrics == {"train_loss": 0.25, "ce": 0.25, "accuracy": 0.5}


def test_a_missing_loss_is_an_error_that_shows_both_ways_out() -> None:
    inner = ModelOfItsOwn({"accuracy": 0.5})
    client = FedPWClient(inner, loss_key="ce")
    with pytest.raises(ValueError, match=r"ModelOfItsOwn reports.*accuracy.*'ce'") as raised:
        client.fit(as_list(MODEL), dict(CONFIG))
    message = str(raised.value)
    assert 'return parameters, num_examples, {"ce": mean_loss}' in message
    assert 'FedPWClient(client, loss_key="...")' in message
    assert 'FedPWClient(client, loss_source="evaluate")' in message
    assert inner.evaluated == []


class ModelOfItsOwn(NumPyClient):
    """Keeps one model, returns its very arrays, and evaluates by loading what it is given."""

    def __init__(self, metrics: Config | None = None) -> None:
        self.model = as_list(MODEL)
        self.metrics = metrics or {}
        self.evaluated: list[tuple[Arrays, Config]] = []

    def _load(self, parameters: Arrays) -> None:
        for array, given in zip(self.model, parameters, strict=True):
            array[...] = given

    def fit(self, parameters: Arrays, config: Config) -> Fitted:
        self._load(parameters)
        return moved_in_place(self.model), 10, dict(self.metrics)

    def evaluate(self, parameters: Arrays, config: Config) -> tuple[float, int, Config]:
        self.evaluated.append(([array.copy() for array in parameters], config))
        self._load(parameters)
        size: Any = np.float32(sum(np.abs(array).sum() for array in parameters))
        return size, 10, {"accuracy": 0.5}


RECEIVED_LOSS = float(np.float32(sum(np.abs(array).sum() for array in MODEL.values())))


@asked
def test_evaluate_gives_the_loss_of_the_received_model(entries: Config) -> None:
    inner = ModelOfItsOwn({"accuracy": 0.25})
    app = app_of(lambda: FedPWClient(inner, loss_source="evaluate"))
    result = fitted(app, {**CONFIG, **entries})
    assert without_report(result.metrics) == {"train_loss": RECEIVED_LOSS, "accuracy": 0.25}
    ((parameters, config),) = inner.evaluated
    assert bits(parameters) == bits(as_list(MODEL))
    assert config == CONFIG


@asked
def test_evaluate_may_overwrite_what_fit_returned_and_what_it_is_given(entries: Config) -> None:
    class Overwrites(ModelOfItsOwn):
        def evaluate(self, parameters: Arrays, config: Config) -> tuple[float, int, Config]:
            result = super().evaluate(parameters, config)
            for array in parameters:
                array[...] = 0
            return result

    config = {**CONFIG, **entries}
    evaluated = fitted(app_of(lambda: FedPWClient(Overwrites(), loss_source="evaluate")), config)
    reported = ModelOfItsOwn({"train_loss": RECEIVED_LOSS})
    assert evaluated == fitted(app_of(lambda: FedPWClient(reported)), config)


def test_evaluate_is_not_called_where_fit_reports_the_loss() -> None:
    inner = ModelOfItsOwn({"ce": 0.5})
    client = FedPWClient(inner, loss_key="ce", loss_source="evaluate")
    _, _, metrics = client.fit(as_list(MODEL), dict(CONFIG))
    assert metrics == {"train_loss": 0.5, "ce": 0.5}
    assert inner.evaluated == []


def test_a_client_that_cannot_evaluate_has_no_loss_to_give() -> None:
    # Flower's NumPyClient.evaluate returns a loss of 0.0, which would make it the best client.
    with pytest.raises((TypeError, ValueError), match="evaluate"):
        FedPWClient(Trained(moved), loss_source="evaluate").fit(as_list(MODEL), dict(CONFIG))


# What passes through


@asked
def test_the_inner_client_sees_the_configuration_without_fedpws_entries(entries: Config) -> None:
    inner = FullClient()
    fitted(app_of(lambda: FedPWClient(inner)), {**CONFIG, **entries})
    ((method, config),) = inner.calls
    assert method == "fit"
    assert dict(config) == CONFIG
    assert {key: type(value) for key, value in config.items()} == {
        key: type(value) for key, value in CONFIG.items()
    }


@asked
def test_every_metric_of_the_inner_client_comes_back_as_it_is(entries: Config) -> None:
    metrics = {
        **{"train_loss": 0.5, "f1": -0.25, "count": 3, "name": "x", "blob": b"\0", "flag": True},
        **{"nan": float("inf"), "empty": "", "num-examples": 99},
    }
    app = app_of(lambda: FedPWClient(Trained(moved, **metrics)))
    result = fitted(app, {**CONFIG, **entries})
    assert without_report(result.metrics) == metrics
    assert {key: type(result.metrics[key]) for key in metrics} == {
        key: type(value) for key, value in metrics.items()
    }
    assert result.num_examples == 10


def test_other_methods_are_the_inner_clients() -> None:
    inner = FullClient()
    client = FedPWClient(inner)
    assert client.get_properties({"a": 1}) == {"node": 11, "kind": "full", "a": 1}
    assert bits(client.get_parameters({"b": 2})) == bits(as_list(MODEL))
    config = {**CONFIG, REQUEST_KEY: b"as it is"}
    assert client.evaluate(as_list(MODEL), config) == inner.evaluate(as_list(MODEL), config)
    expected = [("get_properties", {"a": 1}), ("get_parameters", {"b": 2})]
    assert inner.calls == [*expected, ("evaluate", config), ("evaluate", config)]


def test_attributes_are_the_inner_clients() -> None:
    inner = FullClient(12)
    client: Any = FedPWClient(inner)
    assert client.client is inner
    assert client.node == 12
    assert client.doubled == 24
    assert client._secret == 7
    assert client.calls is inner.calls
    inner.node = 13
    assert client.doubled == 26
    with pytest.raises(AttributeError, match="tripled"):
        _ = client.tripled
    assert not hasattr(client, "__array__")


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda client: pickle.loads(pickle.dumps(client))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_of_the_wrapper_does_the_same(copied: Callable[[Any], Any]) -> None:
    client = FedPWClient(NoisyClient(12), device="cpu", client_id=3, trainable=[0, 1])
    twin = copied(client)
    config = {**CONFIG, **REQUESTS["mask and rescale"]}
    assert isinstance(twin, FedPWClient)
    assert fitted(app_of(lambda: twin), config) == fitted(app_of(lambda: client), config)
    assert {**vars(twin), "client": None} == {**vars(client), "client": None}


class OnlyFit(NumPyClient):
    def fit(self, parameters: Arrays, config: Config) -> Fitted:
        return parameters, 10, {"train_loss": 0.5}


class AllButFit(FullClient):
    fit = NumPyClient.fit


class InheritsFit(OnlyFit):
    def get_parameters(self, config: Config) -> Arrays:
        return as_list(MODEL)


def codes(client: NumPyClient) -> dict[str, Code]:
    """What Flower's message handler makes of each method."""
    made, parameters = client.to_client(), ndarrays_to_parameters(as_list(MODEL))
    return {
        "get_properties": maybe_call_get_properties(made, GetPropertiesIns({})).status.code,
        "get_parameters": maybe_call_get_parameters(made, GetParametersIns({})).status.code,
        "fit": maybe_call_fit(made, FitIns(parameters, dict(CONFIG))).status.code,
        "evaluate": maybe_call_evaluate(made, EvaluateIns(parameters, {})).status.code,
    }


@pytest.mark.parametrize(
    ("inner", "missing"),
    [
        (FullClient, set()),
        (OnlyFit, {"get_properties", "get_parameters", "evaluate"}),
        (AllButFit, {"fit"}),
        (InheritsFit, {"get_properties", "evaluate"}),
        (NumPyClient, {"get_properties", "get_parameters", "fit", "evaluate"}),
    ],
)
def test_it_can_do_what_the_inner_client_can_do(
    inner: type[NumPyClient], missing: set[str]
) -> None:
    wrapped = codes(FedPWClient(inner()))
    assert {name for name, code in wrapped.items() if code is not Code.OK} == missing
    assert wrapped == codes(inner())


def test_to_client_leaves_the_wrapper_as_it_is() -> None:
    client = FedPWClient(OnlyFit())
    before = dict(vars(client))
    first, second = client.to_client(), client.to_client()
    assert isinstance(first, Client)
    assert first is not second
    assert type(client) is FedPWClient
    assert vars(client) == before


def test_client_fn_may_return_the_wrapper_itself() -> None:
    app = ClientApp(client_fn=lambda context: FedPWClient(NoisyClient(11)))  # type: ignore[return-value]
    config = {**CONFIG, **REQUESTS["mask"]}
    expected = fitted(app_of(lambda: FedPWClient(NoisyClient(11))), config)
    assert fitted(app, config) == expected


def test_to_client_keeps_what_a_subclass_of_the_wrapper_does() -> None:
    class Counting(FedPWClient):
        rounds = 0

        @property
        def label(self) -> str:
            return f"client {self.client_id}"

        def fit(self, parameters: Arrays, config: Config) -> Fitted:
            inner.calls.append(("counted", {"label": self.label}))
            return super().fit(parameters, config)

        def get_properties(self, config: Config) -> Config:
            return {"label": self.label}

    inner = FullClient()
    client = Counting(inner, client_id=5)
    expected = FedPWClient(NoisyClient(11), client_id=5)
    assert client.label == "client 5"
    result = fitted(app_of(lambda: client), CONFIG)
    assert inner.calls == [("counted", {"label": "client 5"}), ("fit", CONFIG)]
    assert result == fitted(app_of(lambda: expected), CONFIG)


# Its arguments


class FlowerClient(Client):
    """A client of the other kind."""


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (FlowerClient(), r"FedPWClient\(MyClient\(\)\).to_client\(\)"),
        (NoisyClient(11).to_client(), r"FedPWClient\(MyClient\(\)\).to_client\(\)"),
        (None, r"inherits from flwr\.client\.NumPyClient"),
        (NoisyClient, r"inherits from flwr\.client\.NumPyClient"),
        (lambda context: None, r"inherits from flwr\.client\.NumPyClient"),
        (FedPWClient(NoisyClient(11)), "wrap it once"),
    ],
    ids=["Client", "to_client", "nothing", "class", "function", "twice"],
)
def test_only_a_numpy_client_can_be_wrapped_and_only_once(other: Any, complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        FedPWClient(other)


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        ({"loss_source": "train"}, ValueError, "loss_source='train': choose \"fit\""),
        ({"loss_source": None}, ValueError, "loss_source=None"),
        ({"loss_key": ""}, TypeError, "loss_key"),
        ({"loss_key": None}, TypeError, "loss_key"),
        ({"client_id": -1}, TypeError, "client_id.*-1"),
        ({"client_id": "3"}, TypeError, "client_id.*'3'"),
        ({"client_id": True}, TypeError, "client_id.*True"),
        ({"client_id": 1.0}, TypeError, "client_id.*1.0"),
        ({"trainable": []}, TypeError, "trainable"),
        ({"trainable": [0, -1]}, TypeError, "trainable.*-1"),
        ({"trainable": ["weight"]}, TypeError, "trainable.*weight"),
        ({"trainable": "01"}, TypeError, "trainable"),
        ({"trainable": [True, False]}, TypeError, "trainable"),
        ({"trainable": [1.0]}, TypeError, "trainable"),
    ],
    ids=str,
)
def test_an_argument_that_makes_no_sense_is_refused(
    arguments: Config, error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        FedPWClient(NoisyClient(11), **arguments)


def test_the_device_is_cuda_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert FedPWClient(NoisyClient(11)).device.type == expected
    assert FedPWClient(NoisyClient(11), device="cpu").device == torch.device("cpu")


def test_client_id_is_reported_from_training_and_evaluation_where_it_was_given() -> None:
    nameless = FedPWClient(FullClient())
    assert "client-id" not in nameless.fit(as_list(MODEL), dict(CONFIG))[2]
    assert "client-id" not in nameless.evaluate(as_list(MODEL), dict(CONFIG))[2]
    client = FedPWClient(FullClient(), client_id=0)
    assert client.fit(as_list(MODEL), dict(CONFIG))[2]["client-id"] == 0
    loss, num_examples, metrics = client.evaluate(as_list(MODEL), dict(CONFIG))
    expected = FullClient().evaluate(as_list(MODEL), dict(CONFIG))
    assert (loss, num_examples) == expected[:2]
    assert metrics == {**expected[2], "client-id": 0}


@pytest.mark.parametrize("trainable", [[1, 0], (0, 1, 1), range(2)], ids=repr)
def test_indices_of_trainable_arrays_are_reported_in_order(trainable: Any) -> None:
    client = FedPWClient(NoisyClient(11), trainable=trainable)
    _, _, metrics = client.fit(as_list(MODEL), {**CONFIG, **REQUESTS["first round"]})
    assert AdjustmentReport.decode(metrics[REPORT_KEY], 4).trainable == (0, 1)


@pytest.mark.parametrize(("index", "complaint"), [(4, "has 4 arrays"), (3, "which is int64")])
def test_a_trainable_array_must_be_a_floating_one(index: int, complaint: str) -> None:
    client = FedPWClient(NoisyClient(11), trainable=[0, index])
    with pytest.raises(ValueError, match=f"trainable names array {index}.*{complaint}"):
        client.fit(as_list(MODEL), {**CONFIG, **REQUESTS["mask"]})


def test_consensus_bits_of_another_model_are_an_error() -> None:
    entries = {**REQUESTS["mask and rescale"], CONSENSUS_KEY: b"\0"}
    with pytest.raises(ValueError, match="consensus sets take 4 bytes, 1 came"):
        FedPWClient(NoisyClient(11)).fit(as_list(MODEL), {**CONFIG, **entries})
