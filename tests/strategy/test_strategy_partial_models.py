"""Clients keep a part of the model to themselves: a head, BatchNorm, all but an adapter."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.client import Client as LegacyClient
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Scalar, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from support.adjusting_clients import WHERE, ignoring, model_of, round_of
from support.baselines_federation import BUILDS
from support.grid import Client, ClientsGrid, train_round
from support.legacy_federation import app_clients, fit_round, run_server, with_server_round
from support.records import (
    NDArrays,
    array_record,
    clients_of,
    left_out_of,
    ndarrays,
    payloads,
    train_content,
)
from support.small_model import evaluate_reply, trained

from fedpw_flwr import FedPW, FedPWClient, legacy
from fedpw_flwr.client.numpy_client_app import numpy_client_app
from fedpw_flwr.rounds.faults import UnusableRepliesError

NODES = [41, 42, 43, 44]

MODEL: NDArrays = {
    "body.weight": np.linspace(-0.5, 2.0, 60, dtype=np.float32).reshape(12, 5),
    "norm.weight": np.ones(5, dtype=np.float32),
    "norm.running_mean": np.linspace(0.1, 0.4, 5, dtype=np.float32),
    "norm.running_var": np.linspace(0.9, 1.4, 5, dtype=np.float32),
    "norm.num_batches_tracked": np.array(4, dtype=np.int64),
    "head.weight": np.linspace(-1.0, 1.0, 15, dtype=np.float32).reshape(5, 3),
    "head.bias": np.zeros(3, dtype=np.float32),
}
PRIVATE = {
    "head (FedPer)": "head",
    "BatchNorm (FedBN)": "norm",
    "body (adapters)": "body",
}
privacies = pytest.mark.parametrize("private", PRIVATE.values(), ids=PRIVATE)


def shared(model: NDArrays, private: str) -> NDArrays:
    return {name: array for name, array in model.items() if not name.startswith(private)}


class Personal:
    """A client with layers of its own: it trains all, and returns what it shares."""

    def __init__(self, private: str) -> None:
        self.private = private
        self.own: dict[int, NDArrays] = {}
        self.received: list[list[str]] = []

    def __call__(self, message: Message) -> Message:
        node, sent = message.metadata.dst_node_id, model_of(message)
        if message.metadata.message_type != "train":
            self.received.append(list(sent))
            return evaluate_reply(message)
        whole = {**MODEL, **self.own.get(node, {}), **sent}
        trained_whole = trained(whole, (node, round_of(message)), 0.05)
        self.own[node] = {n: a for n, a in trained_whole.items() if n.startswith(self.private)}
        self.received.append(list(sent))
        returned = shared(trained_whole, self.private)
        return Message(train_content(returned, loss=0.2 * (node - 40)), reply_to=message)


def start(strategy: FlowerFedAvg, client: Client, rounds: int = 4, **options: Any) -> ArrayRecord:
    grid = ClientsGrid(dict.fromkeys(NODES, client))
    return strategy.start(grid, array_record(MODEL), num_rounds=rounds, **options).arrays


@pytest.mark.parametrize(
    ("private", "where"),
    [
        *itertools.product(PRIVATE.values(), ["server"]),
        *itertools.product(["norm"], list(WHERE)[1:]),
    ],
)
def test_it_is_the_run_of_a_model_that_never_had_those_arrays(private: str, where: str) -> None:
    options, client_of = WHERE[where]
    client = Personal(private)
    arrays, smaller = array_record(MODEL), array_record(shared(MODEL, private))
    partial, whole = FedPW(device="cpu", **options), FedPW(device="cpu", **options)
    grid = ClientsGrid(dict.fromkeys(NODES, client_of(client)))
    other = ClientsGrid(dict.fromkeys(NODES, client_of(Personal(private))))
    for server_round in range(1, 5):
        arrays, told = train_round(partial, grid, arrays, server_round)
        smaller, expected = train_round(whole, other, smaller, server_round)
        assert payloads(arrays) == payloads(smaller)
        assert told == expected
    assert partial.state == whole.state
    for name, array in ndarrays(arrays).items():
        assert array.dtype == MODEL[name].dtype
        assert not np.array_equal(array, MODEL[name])


@privacies
def test_what_no_client_returns_is_no_part_of_the_model_as_in_flowers_fedavg(private: str) -> None:
    client = Personal(private)
    arrays = start(FedPW(device="cpu"), ignoring(client))
    expected = start(FlowerFedAvg(), ignoring(Personal(private)))
    assert set(arrays) == set(expected)
    assert list(arrays) == list(shared(MODEL, private))
    # In round 1 the whole model is sent, from then on and for evaluation what is shared.
    each = len(NODES)
    assert client.received[:each] == [list(MODEL)] * each
    assert client.received[each:] == [list(arrays)] * (7 * each)


@pytest.mark.parametrize("name", BUILDS)
def test_so_it_is_with_every_baseline(name: str) -> None:
    arrays = start(BUILDS[name](), ignoring(Personal("head")))
    assert list(arrays) == list(shared(MODEL, "head"))
    assert all(np.isfinite(array).all() for array in ndarrays(arrays).values())


def test_it_is_said_once(flower_log: pytest.LogCaptureFixture) -> None:
    start(FedPW(), ignoring(Personal("head")))
    said = [line for line in flower_log.text.splitlines() if "No client returns" in line]
    assert len(said) == 1
    assert "['head.weight', 'head.bias']" in said[0]
    assert "now has 5 arrays" in said[0]


@pytest.mark.parametrize("where", ["server", "packed"])
def test_once_settled_a_missing_array_is_a_broken_reply(where: str) -> None:
    options, client_of = WHERE[where]

    def forgetful(message: Message) -> Message:
        reply = Personal("head")(message)
        if message.metadata.dst_node_id == 43 and round_of(message) > 1:
            kept = shared(ndarrays(reply.content["arrays"]), "norm.weight")
            reply.content["arrays"] = array_record(kept)
        return reply

    strategy, arrays = FedPW(device="cpu", **options), array_record(MODEL)
    grid = ClientsGrid(dict.fromkeys(NODES, client_of(forgetful)))
    left_out = []
    for server_round in (1, 2, 3):
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        left_out.append(left_out_of(metrics))
        assert (43 in clients_of(metrics)) == (server_round == 1)
    assert left_out == [0, 1, 1]
    assert list(arrays) == list(shared(MODEL, "head"))


@pytest.mark.parametrize(
    ("private", "broken", "settled", "usable"),
    [
        # A usable reply has the head: it belongs to the model.
        ({41: "head", 42: "nothing", 43: "head", 44: "head"}, None, "nothing", [42]),
        # A broken reply does not decide.
        ({41: "head", 42: "nothing", 43: "head", 44: "head"}, 42, "head", [41, 43, 44]),
        # One reply alone settles nothing.
        ({41: "head"}, None, "nothing", []),
        # Nor do replies of which each lacks something else.
        ({41: "head", 42: "norm", 43: "body", 44: "norm"}, 44, "nothing", []),
    ],
)
def test_the_usable_replies_of_a_round_settle_what_belongs_to_the_model(
    private: dict[int, str], broken: int | None, settled: str, usable: list[int]
) -> None:
    def client(message: Message) -> list[Message]:
        node = message.metadata.dst_node_id
        reply = Personal(private[node])(message)
        if node == broken:
            reply.content.metric_records["metrics"]["train_loss"] = -1.0
        return [reply]

    strategy = FedPW(min_train_nodes=1, min_available_nodes=1)
    grid = ClientsGrid(dict.fromkeys(private, client))
    arrays, metrics = train_round(strategy, grid, array_record(MODEL))
    assert list(arrays) == list(shared(MODEL, settled))
    assert metrics.get("fedpw-client-id", []) == usable
    assert metrics["fedpw-quarantined"] == len(private) - len(usable)
    assert usable or payloads(arrays) == payloads(array_record(MODEL))


def test_clients_that_return_no_floating_array_are_an_error() -> None:
    def counting(message: Message) -> list[Message]:
        name = "norm.num_batches_tracked"
        return [Message(train_content({name: MODEL[name]}), reply_to=message)]

    grid = ClientsGrid(dict.fromkeys(NODES, counting))
    with pytest.raises(UnusableRepliesError, match=r"missing.*'body.weight'"):
        train_round(FedPW(), grid, array_record(MODEL))


def test_trainable_names_of_private_arrays_are_no_longer_looked_for() -> None:
    strategy = FedPW(trainable=["body.weight", "head.weight", "norm.weight"])
    arrays = start(strategy, ignoring(Personal("head")))
    assert list(arrays) == list(shared(MODEL, "head"))
    assert strategy.settings.trainable == ("body.weight", "norm.weight")


@pytest.mark.parametrize("where", ["client", "packed"])
def test_a_run_goes_on_from_a_checkpoint_with_what_is_shared(where: str, tmp_path: Path) -> None:
    options, client_of = WHERE[where]
    options = {"device": "cpu", "seed": 3, **options}
    one, other = Personal("norm"), Personal("norm")
    expected = start(FedPW(**options), client_of(one), rounds=5)
    start(FedPW(checkpoint_dir=tmp_path, **options), client_of(other), rounds=2)
    resumed = FedPW(checkpoint_dir=tmp_path, resume=True, **options)
    arrays = start(resumed, client_of(other), rounds=5)
    assert payloads(arrays) == payloads(expected)


# Lists of arrays have indices in place of names: what is private comes last.


class PersonalNumPy(NumPyClient):
    """The head stays here: fewer arrays come back than were sent in the first round."""

    def fit(
        self, parameters: list[np.ndarray], config: dict[str, Scalar]
    ) -> tuple[list[np.ndarray], int, dict[str, Scalar]]:
        rng = np.random.default_rng(int(config["server-round"]))
        moved = [
            np.asarray(array + 1 if array.dtype.kind == "i" else array + 0.1 * rng.random())
            for array in parameters[:5]
        ]
        arrays = [a.astype(b.dtype) for a, b in zip(moved, parameters, strict=False)]
        return arrays, 10, {"train_loss": 0.5}

    def evaluate(
        self, parameters: list[np.ndarray], config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        return 0.5, 10, {"arrays": len(parameters)}


def wrapped(context: Context) -> LegacyClient:
    return FedPWClient(PersonalNumPy(), device="cpu").to_client()


def plain(context: Context) -> LegacyClient:
    return PersonalNumPy().to_client()


NAMES = list(MODEL)
LEGACY: list[tuple[dict[str, Any], Callable[[Context], LegacyClient]]] = [
    ({}, plain),
    ({"array_names": NAMES}, plain),
    ({"adjustment": "client"}, wrapped),
    ({"array_names": NAMES, "adjustment": "client", "upload": "packed"}, wrapped),
]


@pytest.mark.parametrize(("options", "client_fn"), LEGACY)
def test_the_legacy_server_settles_it_by_index(
    options: dict[str, Any],
    client_fn: Callable[[Context], LegacyClient],
    flower_log: pytest.LogCaptureFixture,
) -> None:
    parameters = ndarrays_to_parameters(list(MODEL.values()))
    strategy = legacy.FedPW(on_fit_config_fn=with_server_round, device="cpu", **options)
    clients = app_clients(ClientApp(client_fn=client_fn), NODES)
    for server_round in range(1, 5):
        parameters, metrics = fit_round(strategy, clients, parameters, server_round)
        assert metrics["fedpw-quarantined"] == metrics["fedpw-failed"] == 0
    shapes = [array.shape for array in parameters_to_ndarrays(parameters)]
    assert shapes == [array.shape for array in list(MODEL.values())[:5]]
    nameless = "array_names" not in options
    assert flower_log.text.count("the first 5 arrays of the list are taken as") == nameless


@pytest.mark.parametrize("array_names", [None, NAMES])
def test_the_legacy_server_goes_on_from_a_checkpoint_with_what_is_shared(
    array_names: list[str] | None, tmp_path: Path
) -> None:
    def after(rounds: int, resume: bool, folder: Path) -> list[bytes]:
        strategy = legacy.FedPW(
            on_fit_config_fn=with_server_round,
            array_names=array_names,
            initial_parameters=ndarrays_to_parameters(list(MODEL.values())),
        )
        clients = app_clients(ClientApp(client_fn=plain), NODES)
        _, last = run_server(strategy, clients, rounds, checkpoint_dir=folder, resume=resume)
        return last.tensors

    expected = after(4, False, tmp_path / "whole")
    after(2, False, tmp_path / "parts")
    assert after(4, True, tmp_path / "parts") == expected
    assert len(expected) == 5


@pytest.mark.parametrize("options", [{}, {"adjustment": "client"}])
def test_a_fedpw_client_under_the_message_api_keeps_the_last_arrays(
    options: dict[str, Any],
) -> None:
    app = numpy_client_app(lambda context: FedPWClient(PersonalNumPy(), device="cpu"))

    def client(message: Message) -> list[Message]:
        node = message.metadata.dst_node_id
        return [app(copy.deepcopy(message), Context(1, node, {}, RecordDict(), {}))]

    arrays = start(FedPW(device="cpu", **options), client)
    assert list(arrays) == list(MODEL)[:5]
