"""numpy_client_app: NumPyClients under any Message-API strategy, from one message to whole runs."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from client_federation import (
    FLOATS,
    NODES,
    Arrays,
    NoisyClient,
    answer,
    arrays_of,
    as_list,
    config_of,
    context_of,
    grid_of,
    message_to,
    metrics_of,
    over_the_wire,
    reference_count,
    reference_sent,
    reference_update,
    request_entries,
    train_message,
    train_metrics,
    training_loss,
)
from clients_grid import ClientsGrid, ask, train_round
from federation import MODEL
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.serverapp.strategy import FedAvg, FedProx, QFedAvg, Result
from model_records import NDArrays, array_record, ndarrays, payloads

from fedpw_flwr import FedPW, FedPWClient, numpy_client_app
from fedpw_flwr.wire.adjustment import CONSENSUS_KEY, REPORT_KEY, REQUEST_KEY, AdjustmentRequest

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


def bits(arrays: Arrays) -> list[tuple[Any, ...]]:
    return [(array.shape, array.dtype, array.tobytes()) for array in arrays]


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


def test_the_wrapped_client_does_not_see_fedpws_entries() -> None:
    inner = Told()
    entries = request_entries(0.3, {0: (np.ones(24, np.bool_), 1.5)})
    message = train_message(MODEL, {**CONFIG, **entries})
    reply = answer(numpy_client_app(lambda context: FedPWClient(inner)), message)
    ((_, _, config),) = inner.calls
    assert set(config) == {"server-round", *CONFIG}
    assert not reply.has_error()


def test_evaluation_reports_the_loss_and_the_examples() -> None:
    client = Told({"accuracy": 0.75})
    message = train_message(MODEL, CONFIG, "evaluate")
    reply = answer(numpy_client_app(lambda context: client), message)
    ((method, parameters, _),) = client.calls
    assert method == "evaluate"
    assert bits(parameters) == bits(list(MODEL.values()))
    assert set(reply.content) == {"metrics"}
    assert metrics_of(reply) == {
        "eval_loss": 0.25,
        "num-examples": 20,
        "accuracy": 0.75,
    }


def test_a_query_asks_for_the_properties() -> None:
    client = Told()
    content = RecordDict({"question": ConfigRecord({"which": "all"})})
    reply = answer(numpy_client_app(lambda context: client), message_to(content, "query"))
    assert client.calls == [("get_properties", [], {"which": "all"})]
    assert dict(reply.content["properties"]) == {"name": "told", "cores": 2, "gpu": False}


NUMBERS: Config = {
    **{"a": 0.5, "b": 3, "c": np.float64(0.25), "d": np.float32(0.25), "e": np.int64(4)},
    **{"f": np.array(0.75), "g": np.uint8(5), "h": float("inf"), "i": np.float16(0.5)},
}
OTHERS: Config = {"text": "x", "blob": b"\0", "flag": True, "nothing": "", "no": False}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("wrap", [FedPWClient, unwrapped], ids=["wrapped", "plain"])
def test_numbers_travel_as_metrics_and_whatever_else_in_a_configuration_record(
    kind: str, wrap: Wrap
) -> None:
    app = numpy_client_app(lambda context: wrap(Told({"train_loss": 0.5, **NUMBERS, **OTHERS})))
    reply = answer(app, train_message(MODEL, {}, kind))
    metrics, others = metrics_of(reply), reply.content["other-metrics"]
    assert isinstance(others, ConfigRecord)
    assert {key: metrics[key] for key in NUMBERS} == {
        key: np.asarray(value).item() for key, value in NUMBERS.items()
    }
    assert dict(others) == OTHERS
    assert {key: type(others[key]) for key in OTHERS} == {
        key: type(value) for key, value in OTHERS.items()
    }


@pytest.mark.parametrize(
    ("metric", "expected"), [(np.bool_(True), True), (np.str_("x"), "x"), (np.bytes_(b"z"), b"z")]
)
def test_numpys_other_scalars_travel_as_pythons(metric: Any, expected: Any) -> None:
    app = numpy_client_app(lambda context: Told({"train_loss": 0.5, "odd": metric}))
    reply = answer(app, train_message(MODEL, {}))
    assert dict(reply.content["other-metrics"]) == {"odd": expected}
    assert type(reply.content["other-metrics"]["odd"]) is type(expected)


@pytest.mark.parametrize("metric", [[0.5, 0.25], [1, 2]], ids=str)
def test_a_list_of_numbers_is_a_metric(metric: list[Any]) -> None:
    app = numpy_client_app(lambda context: Told({"train_loss": 0.5, "per-class": metric}))
    reply = answer(app, train_message(MODEL, {}))
    assert metrics_of(reply)["per-class"] == metric


def test_the_report_and_the_identity_have_records_of_their_own() -> None:
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


def test_mods_stand_round_training_and_evaluation_the_first_outermost() -> None:
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
    app = numpy_client_app(lambda context: FedPWClient(Told()).to_client())  # type: ignore[arg-type, return-value]
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
    result = ([np.full(2, place) for place in range(count)], 10, {"train_loss": 0.5})
    app = numpy_client_app(lambda context: wrap(Told(fit=result)))
    reply = ndarrays(arrays_of(answer(app, train_message(MODEL, {}))))
    assert list(reply) == [*MODEL, "surplus array 4", "surplus array 5"][:count]
    assert bits(list(reply.values())) == bits(result[0])


def test_a_message_with_two_models_is_an_error() -> None:
    content = RecordDict({"one": array_record(MODEL), "two": array_record(MODEL)})
    with pytest.raises(ValueError, match=r"2 ArrayRecords.*one.*two"):
        answer(numpy_client_app(lambda context: Told()), message_to(content))


def test_a_message_of_a_legacy_server_is_an_error_that_says_what_to_do() -> None:
    content = RecordDict(
        {"fitins.parameters": array_record(MODEL), "fitins.config": ConfigRecord({})}
    )
    with pytest.raises(ValueError, match=r"legacy strategy.*FedPWClient\(client\)\.to_client"):
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
    "q-FedAvg": lambda: QFedAvg(client_learning_rate=0.1, q=0.5),
    "FedPW on the server": FedPW,
    "FedPW without adjustment": lambda: FedPW(adjust_parameters=False),
}


@pytest.fixture
def _quick_collection() -> Iterator[None]:
    """q-FedAvg collects garbage for every reply: spare it what was there before."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_quick_collection")
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


def test_fedprox_sends_its_term_to_the_inner_client() -> None:
    inner = Told()
    run(FedProx(proximal_mu=0.25), numpy_client_app(lambda context: FedPWClient(inner)), MODEL, 1)
    assert {config["proximal-mu"] for kind, _, config in inner.calls if kind == "fit"} == {0.25}


UPLOADS: dict[str, Config] = {
    "dense": {},
    "packed": {"upload": "packed"},
    "packed as float16": {"upload": "packed", "upload_dtype": "float16"},
    "packed as bfloat16": {"upload": "packed", "upload_dtype": "bfloat16"},
}


@pytest.mark.parametrize("upload", UPLOADS)
def test_wrapped_clients_adjust_their_updates_for_fedpw(upload: str) -> None:
    result = run(FedPW(adjustment="client", **UPLOADS[upload]), noisy_app(), MODEL)
    for server_round, metrics in train_metrics(result).items():
        assert (metrics["fedpw-quarantined"], metrics["fedpw-failed"]) == (0, 0)
        assert metrics["fedpw-client-id"] == NODES
        assert all(metrics["fedpw-drop-rate"]) == (server_round > 1)
    assert [array.dtype for array in result.arrays.values()] == [
        str(array.dtype) for array in MODEL.values()
    ]
    plain = run(FedPW(adjustment="client", **UPLOADS[upload]), noisy_app(unwrapped), MODEL)
    same_to = {"dense": 0.0, "packed": 0.0, "packed as float16": 1e-3, "packed as bfloat16": 1e-2}
    for name, array in ndarrays(result.arrays).items():
        np.testing.assert_allclose(
            array, ndarrays(plain.arrays)[name], rtol=same_to[upload], atol=same_to[upload]
        )


@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_it_does_not_matter_which_clients_are_wrapped(upload: str) -> None:
    finals = []
    for wrapped_nodes in (set(NODES), {11, 13}, {14}, set()):

        def app_on(node: int) -> ClientApp:
            return noisy_app(FedPWClient if node in wrapped_nodes else unwrapped)  # noqa: B023

        strategy = FedPW(adjustment="client", upload=upload)  # type: ignore[arg-type]
        result = run(strategy, app_on, MODEL)
        finals.append((payloads(result.arrays), numbers(result)))
    assert finals.count(finals[0]) == len(finals)


def test_identities_given_to_the_wrapper_are_those_of_the_servers_memory() -> None:
    app = numpy_client_app(
        lambda context: FedPWClient(NoisyClient(context.node_id), client_id=20 - context.node_id)
    )
    result = run(FedPW(adjustment="client"), app, MODEL)
    for metrics in train_metrics(result).values():
        assert metrics["fedpw-client-id"] == [6, 7, 8, 9]
        assert metrics["fedpw-quarantined"] == 0


def raises(parameters: Arrays) -> Arrays:
    raise OSError("no data")


BROKEN: dict[str, Callable[[Arrays], Any]] = {
    "one array too few": lambda arrays: arrays[:-1],
    "one array too many": lambda arrays: [*arrays, np.zeros(3)],
    "transposed": lambda arrays: [arrays[0].T, *arrays[1:]],
    "float64": lambda arrays: [array.astype(np.float64) for array in arrays],
    "another order": lambda arrays: arrays[::-1],
    "NaN": lambda arrays: [array * np.float32(np.nan) for array in arrays[:3]] + arrays[3:],
    "overflow": lambda arrays: [arrays[0] + np.float32(3e38), *arrays[1:]],
    "text": lambda arrays: [np.full((6, 4), "w"), *arrays[1:]],
    "nothing": lambda arrays: None,
    "exception": raises,
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_a_broken_client_costs_only_itself(broken: str, upload: Any) -> None:
    class Broken(NoisyClient):
        def fit(self, parameters: Arrays, config: Config) -> Fitted:
            after, num_examples, metrics = super().fit(parameters, config)
            return BROKEN[broken](after), num_examples, metrics

    def app_on(node: int) -> ClientApp:
        kind = Broken if node == 12 else NoisyClient
        return numpy_client_app(lambda context: FedPWClient(kind(node)))

    strategy = FedPW(adjustment="client", upload=upload, max_loss_ratio=None)
    result = run(strategy, app_on, MODEL, rounds=3)
    for metrics in train_metrics(result).values():
        assert metrics["fedpw-client-id"] == [11, 13, 14]
        assert metrics["fedpw-quarantined"] + metrics["fedpw-failed"] == 1


@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_a_client_that_did_not_move_is_a_client_like_any_other(upload: Any) -> None:
    class Still(NoisyClient):
        def fit(self, parameters: Arrays, config: Config) -> Fitted:
            _, num_examples, metrics = super().fit(parameters, config)
            return parameters, num_examples, metrics

    def app_on(node: int) -> ClientApp:
        kind = Still if node == 12 else NoisyClient
        return numpy_client_app(lambda context: FedPWClient(kind(node)))

    strategy = FedPW(adjustment="client", upload=upload, max_loss_ratio=None)
    result = run(strategy, app_on, MODEL, rounds=3)
    for metrics in train_metrics(result).values():
        assert metrics["fedpw-client-id"] == NODES
        assert metrics["fedpw-quarantined"] + metrics["fedpw-failed"] == 0


@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_a_client_far_better_than_the_others_is_masked_to_nothing(upload: Any) -> None:
    class FarBetter(NoisyClient):
        def fit(self, parameters: Arrays, config: Config) -> Fitted:
            after, num_examples, metrics = super().fit(parameters, config)
            return after, num_examples, {**metrics, "train_loss": 0.001}

    def app_on(node: int) -> ClientApp:
        kind = FarBetter if node == 12 else NoisyClient
        return numpy_client_app(lambda context: FedPWClient(kind(node)))

    strategy = FedPW(adjustment="client", upload=upload, max_loss_ratio=None)
    result = run(strategy, app_on, MODEL, rounds=3)
    for server_round, metrics in train_metrics(result).items():
        assert metrics["fedpw-client-id"] == NODES
        assert metrics["fedpw-quarantined"] + metrics["fedpw-failed"] == 0
        if server_round > 1:
            assert metrics["fedpw-drop-rate"][1] == 1.0


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


# Round by round, against the formulas


SHAPES = {"features.weight": (25, 8), "features.bias": (30,), "head.weight": (4, 10)}
WIDE: NDArrays = {
    **{
        name: np.random.default_rng(place).standard_normal(shape).astype(np.float32)
        for place, (name, shape) in enumerate(SHAPES.items())
    },
    "norm.running_mean": np.linspace(0, 1, 20, dtype=np.float32),
    "norm.num_batches_tracked": np.array(3),
}

MEAN_RATE = 0.3


class AgreeingClient(NumPyClient):
    """Moves with the other clients in some entries and against them in others."""

    def __init__(self, node: int) -> None:
        self.node = node

    def fit(self, parameters: Arrays, config: Config) -> Fitted:
        server_round = int(config["server-round"])
        common = np.random.default_rng(server_round)
        own = np.random.default_rng((self.node, server_round))
        after = [
            (
                array
                + 0.1 * common.standard_normal(array.shape)
                + 0.05 * own.standard_normal(array.shape)
            ).astype(array.dtype)
            if array.dtype.kind == "f"
            else array + 1
            for array in parameters
        ]
        return after, 10, {"train_loss": training_loss(self.node, server_round)}


def reference_rates(losses: list[float]) -> list[float]:
    """r_k = min(1, r̄ · (1/ℓ_k) / mean_j(1/ℓ_j))."""
    inverse = 1 / np.array(losses)
    return [float(rate) for rate in np.minimum(1, MEAN_RATE * inverse / inverse.mean())]


def reference_consensus(
    updates: list[npt.NDArray[Any]],
    weights: list[float],
    discarded: list[float],
    sent_scale: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.bool_], float]:
    """C and f of one tensor, from the updates as the clients sent them."""
    count = reference_count(updates[0].size, MEAN_RATE)
    unit = np.array([update / np.linalg.norm(update) for update in updates])
    squares = (unit**2).sum(axis=0)
    score = np.where(squares > 0, unit.sum(axis=0) ** 2 / np.where(squares > 0, squares, 1), 0)
    members = np.zeros(score.size, np.bool_)
    members[np.argsort(-score, kind="stable")[:count]] = True
    change = sum(weight * update for weight, update in zip(weights, updates, strict=True))
    ratio = np.mean(discarded) / np.abs((change / sent_scale)[members]).mean()
    return members, 1 + ratio if ratio < 1 else 1.0


def sent_consensus(config: Config) -> tuple[AdjustmentRequest, dict[int, Any]]:
    """What the server asked a client for: the request, and C by place, read bit by bit."""
    request = AdjustmentRequest.decode(config[REQUEST_KEY])
    members, packed = {}, config.get(CONSENSUS_KEY, b"")
    assert isinstance(packed, bytes)
    for place in sorted(request.factors):
        size = list(WIDE.values())[place].size
        taken, packed = packed[: (size + 7) // 8], packed[(size + 7) // 8 :]
        unpacked = np.unpackbits(np.frombuffer(taken, np.uint8))
        members[place] = unpacked[:size].astype(bool)
    assert packed == b""
    return request, members


@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_every_round_is_what_the_formulas_say(upload: Any) -> None:
    """Round 1 as trained, round 2 masked, from round 3 on masked and then rescaled on C by f."""
    replies: dict[tuple[int, int], Message] = {}
    app = numpy_client_app(lambda context: FedPWClient(AgreeingClient(context.node_id)))

    def client(message: Message) -> list[Message]:
        node = message.metadata.dst_node_id
        reply = over_the_wire(app(over_the_wire(message), context_of(node)))
        replies[int(config_of(message)["server-round"]), node] = reply
        return [reply]

    strategy = FedPW(
        adjustment="client", upload=upload, avg_drop_rate=MEAN_RATE, min_available_nodes=4
    )
    grid = ClientsGrid(dict.fromkeys(NODES, client))
    arrays: ArrayRecord = array_record(WIDE)
    consensus: dict[int, tuple[npt.NDArray[np.bool_], float]] = {}
    rescaled = 0
    for server_round in (1, 2, 3, 4, 5):
        grid.sent.clear()
        before = as_list(ndarrays(arrays))
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        messages = {message.metadata.dst_node_id: message for message in grid.sent}
        rates = [0.0] * 4
        if server_round > 1:
            rates = reference_rates([training_loss(node, server_round - 1) for node in NODES])
            assert metrics["fedpw-drop-rate"] == pytest.approx(rates, rel=1e-12)
        updates: list[Arrays] = []
        discarded: list[list[float]] = []
        for node, rate in zip(NODES, rates, strict=True):
            config = config_of(messages[node])
            request, members = sent_consensus(config)
            assert request.rate == pytest.approx(rate, rel=1e-12)
            assert request.consensus_round == (server_round - 1 if server_round > 2 else None)
            assert set(members) == set(consensus)
            for place, (expected, factor) in consensus.items():
                np.testing.assert_array_equal(members[place], expected)
                assert request.factors[place] == pytest.approx(factor, rel=1e-5)

            after, _, _ = AgreeingClient(node).fit(before, {"server-round": server_round})
            adjusted = [
                reference_update(
                    start, end, request.rate, members.get(place), request.factors.get(place, 1.0)
                )
                for place, (start, end) in enumerate(zip(before[:4], after[:4], strict=True))
            ]
            sent = list(ndarrays(arrays_of(replies[server_round, node])).values())
            assert bits(sent[4:]) == bits(after[4:])
            for place, (update, _) in enumerate(adjusted):
                if upload == "dense":
                    start = before[place]
                    as_trained = server_round == 1
                    expected = after[place] if as_trained else reference_sent(start, update)
                    assert bits([sent[place]]) == bits([expected])
            updates.append([update for update, _ in adjusted])
            discarded.append([magnitude for _, magnitude in adjusted])

        weights: Any = metrics["fedpw-weight"]
        new = as_list(ndarrays(arrays))
        for place in range(4):
            of_clients = [update[place].astype(np.float64) for update in updates]
            change = sum(weight * x for weight, x in zip(weights, of_clients, strict=True))
            moved = before[place].reshape(-1) - change
            np.testing.assert_allclose(new[place].reshape(-1), moved, rtol=1e-5, atol=1e-6)
        if server_round == 1:
            continue
        previous, consensus = consensus, {}
        for place in range(3):
            of_clients = [update[place].astype(np.float64) for update in updates]
            scale = np.ones(of_clients[0].size)
            if place in previous:
                scale[previous[place][0]] = previous[place][1]
            magnitudes = [magnitude[place] for magnitude in discarded]
            found, factor = reference_consensus(of_clients, weights, magnitudes, scale)
            if factor > 1:
                consensus[place] = found, factor
        rescaled += len(consensus)
    assert rescaled > 8


def sent_rates(grid: ClientsGrid) -> dict[int, float]:
    return {
        message.metadata.dst_node_id: AdjustmentRequest.decode(config_of(message)[REQUEST_KEY]).rate
        for message in grid.sent
    }


def test_a_client_never_seen_gets_the_mean_rate() -> None:
    strategy = FedPW(adjustment="client", min_available_nodes=2)
    arrays, _ = train_round(strategy, grid_of(noisy_app(), NODES[:3]), array_record(MODEL), 1)
    grid = grid_of(noisy_app(), NODES)
    train_round(strategy, grid, arrays, 2)
    rates = sent_rates(grid)
    known = reference_rates([training_loss(node, 1) for node in NODES[:3]])
    assert [rates[node] for node in NODES] == pytest.approx([*known, MEAN_RATE], rel=1e-12)


def test_the_order_in_which_nodes_are_sampled_does_not_matter() -> None:
    nodes = range(11, 18)
    strategy = FedPW(adjustment="client")
    arrays, _ = train_round(strategy, grid_of(noisy_app(), nodes), array_record(MODEL), 1)
    asked = []
    for seed in range(10):
        random.seed(seed)
        grid = grid_of(noisy_app(), nodes)
        ask(strategy, grid, arrays, 2)
        asked.append(sent_rates(grid))
    assert asked == [asked[0]] * 10
