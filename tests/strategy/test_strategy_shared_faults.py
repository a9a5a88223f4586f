"""One client's fault costs its reply; the same fault of all is the project's, and ends the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from federation import MODEL, evaluate_reply, good_client, stray, train_reply
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from legacy_federation import (
    INITIAL,
    fit_result,
    fit_round,
    manager_of,
    named,
    plain_clients,
)
from support.grid import Client, ClientsGrid, train_round
from support.records import NDArrays, array_record, ndarrays, payloads

from fedpw_flwr import (
    FedPW,
    FedPWClient,
    FedPWMod,
    MissingLossError,
    baselines,
    legacy,
    numpy_client_app,
)
from fedpw_flwr.checkpoint import CheckpointStore
from fedpw_flwr.rounds.faults import UnusableRepliesError
from fedpw_flwr.rounds.loop import run_rounds

NODES = [21, 22, 23]

Edit = Callable[[RecordDict], Any]


def replying(edit: Edit) -> Client:
    def client(message: Message) -> list[Message]:
        if message.metadata.message_type != "train":
            return [evaluate_reply(message)]
        reply = train_reply(message)
        edit(reply.content)
        return [reply]

    return client


def diverged(content: RecordDict) -> None:
    model = ndarrays(content["arrays"])
    model["body.bias"] = model["body.bias"] * np.float32(np.nan)
    content["arrays"] = array_record(model)


def diverged_with_loss(content: RecordDict) -> None:
    diverged(content)
    loss_of(float("nan"))(content)


def far_off(model: NDArrays) -> NDArrays:
    return {**model, "body.bias": model["body.bias"] + np.float32(5e17)}


def loss_of(value: Any) -> Edit:
    return lambda content: content["metrics"].update({"train_loss": value})


def arrays_of(change: Callable[[NDArrays], NDArrays]) -> Edit:
    def edit(content: RecordDict) -> None:
        content["arrays"] = array_record(change(ndarrays(content["arrays"])))

    return edit


def without_loss(content: RecordDict) -> None:
    content["metrics"] = MetricRecord({"train_logloss": 0.4, "num-examples": 8, "lr": 0.1})


def renamed(model: NDArrays) -> NDArrays:
    return {str(place): array for place, array in enumerate(model.values())}


def one_more(model: NDArrays) -> NDArrays:
    return {**model, "head.weight": np.zeros(5, np.float32)}


def of_one(model: NDArrays) -> NDArrays:
    name = "norm.num_batches_tracked"
    return {**model, name: model[name].reshape(1)}


def flattened(model: NDArrays) -> NDArrays:
    return {**model, "body.weight": model["body.weight"].ravel()}


def float_counter(model: NDArrays) -> NDArrays:
    name = "norm.num_batches_tracked"
    return {**model, name: model[name].astype(np.float32)}


SHARED: dict[str, tuple[Edit, str]] = {
    "no loss": (without_loss, r"no client reported.*did you mean train_loss_key='train_logloss'\?"),
    "a list": (loss_of([0.7, 0.2]), r"a list \(\[0.7, 0.2\]\).*sum\(losses\) / len\(losses\)"),
    "negative": (
        loss_of(-41.5),
        r"a negative training loss.*-41\.5.* weights clients by their losses.*train_loss_key=",
    ),
    "NaN": (
        loss_of(float("nan")),
        "not finite.*'train_loss' is nan.*learning rate, check the data",
    ),
    "infinite": (loss_of(float("inf")), "not finite.*'train_loss' is inf.*learning rate"),
    "NaN in an array": (diverged, "not finite.*'body.bias' holds values.*learning rate"),
    "NaN in loss and array": (diverged_with_loss, "not finite.*'train_loss' is nan.*learning rate"),
    "far too large": (arrays_of(far_off), "far too large.*'body.bias' has the norm.*learning rate"),
    "other names": (arrays_of(renamed), r"missing \['body.bias', .*\], unknown \['0', '1', '2', "),
    "one more": (arrays_of(one_more), r"unknown \['head.weight'\].*initial_arrays=ArrayRecord"),
    "(1,) for ()": (arrays_of(of_one), r"has the shape \(1,\) instead of \(\).*reshape"),
    "another shape": (arrays_of(flattened), r"has the shape \(24,\) instead of \(6, 4\)"),
    "another dtype": (arrays_of(float_counter), "is torch.float32 instead of torch.int64.*astype"),
    "no arrays": (lambda content: content.pop("arrays"), "0 ArrayRecords.*ArrayRecord"),
}
"""What all replies have, and what the error says: fault, what arrived, what to change."""

kinds = pytest.mark.parametrize("kind", SHARED)


@kinds
def test_a_fault_that_all_replies_share_ends_the_run_in_its_first_round(kind: str) -> None:
    edit, said = SHARED[kind]
    grid = ClientsGrid(dict.fromkeys(NODES, replying(edit)))
    with pytest.raises(UnusableRepliesError, match=f"(?s){said}") as raised:
        FedPW().start(grid, array_record(MODEL), num_rounds=5)
    assert "round 1" in str(raised.value)
    assert len(grid.sent) == len(NODES)


ARRAY_KINDS = ["other names", "one more", "(1,) for ()", "another shape", "another dtype"]


@pytest.mark.parametrize("kind", [*ARRAY_KINDS, "NaN in an array", "no arrays"])
@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_so_it_does_where_clients_adjust_their_own_updates(kind: str, upload: Any) -> None:
    edit, said = SHARED[kind]

    def train(message: Message, context: Context) -> Message:
        reply = train_reply(message)
        edit(reply.content)
        return reply

    app = ClientApp(mods=[FedPWMod("cpu")])
    app.train()(train)
    contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in NODES}
    grid = ClientsGrid(
        {node: lambda message: [app(message, contexts[node])] for node in NODES}  # noqa: B023
    )
    strategy = FedPW(adjustment="client", upload=upload)
    with pytest.raises(UnusableRepliesError, match=f"(?s)all 3 replies of round 1 have .*{said}"):
        train_round(strategy, grid, array_record(MODEL))


@pytest.mark.parametrize("wrapped", [True, False])
def test_so_it_does_where_numpy_clients_return_one_array_too_many(wrapped: bool) -> None:
    class Surplus(NumPyClient):
        def fit(self, parameters: list[Any], config: dict[str, Any]) -> Any:
            return [*parameters, np.zeros(7, np.float32)], 4, {"train_loss": 1.25}

    def client_of(context: Context) -> NumPyClient:
        return FedPWClient(Surplus(), device="cpu") if wrapped else Surplus()

    app = numpy_client_app(client_of)
    context = Context(1, 0, {}, RecordDict(), {})
    grid = ClientsGrid(dict.fromkeys(NODES, lambda message: [app(message, context)]))
    with pytest.raises(UnusableRepliesError, match=r"round 1 have other.*\['surplus array \d'\]"):
        train_round(FedPW(adjustment="client"), grid, array_record(MODEL))


@kinds
def test_so_it_does_for_baselines(kind: str) -> None:
    edit, said = SHARED[kind]
    strategy = baselines.TERM(t=0.5)
    grid = ClientsGrid(dict.fromkeys(NODES, replying(edit)))
    with pytest.raises(UnusableRepliesError, match=f"(?s){said}") as raised:
        strategy.start(grid, array_record(MODEL), num_rounds=5)
    assert "TERM" in str(raised.value) or "FedPW" not in str(raised.value)


@kinds
def test_what_one_client_does_among_others_costs_only_its_reply(kind: str) -> None:
    edit, _ = SHARED[kind]
    grid = ClientsGrid({**dict.fromkeys(NODES, good_client), 22: replying(edit)})
    _, metrics = train_round(FedPW(), grid, array_record(MODEL))
    assert metrics["fedpw-client-id"] == [21, 23]
    assert metrics["fedpw-quarantined"] == 1


@kinds
def test_a_fault_that_comes_later_is_not_how_the_project_is_written(kind: str) -> None:
    strategy, arrays = FedPW(), array_record(MODEL)
    arrays, _ = train_round(strategy, ClientsGrid(dict.fromkeys(NODES, good_client)), arrays, 1)
    later = ClientsGrid(dict.fromkeys(NODES, replying(SHARED[kind][0])))
    for server_round in range(2, 7):
        after, metrics = train_round(strategy, later, arrays, server_round)
        assert payloads(after) == payloads(arrays)
        assert metrics["fedpw-quarantined"] == len(NODES)


@kinds
def test_one_reply_alone_shares_its_fault_with_nobody(kind: str) -> None:
    grid = ClientsGrid({21: replying(SHARED[kind][0])})
    strategy = FedPW(min_train_nodes=1, min_available_nodes=1)
    _, metrics = train_round(strategy, grid, array_record(MODEL))
    assert metrics["fedpw-quarantined"] == 1


def test_two_replies_of_one_node_are_one_clients() -> None:
    def twice(message: Message) -> list[Message]:
        [reply] = replying(loss_of(-2.5))(message)
        return [reply, reply]

    grid = ClientsGrid({21: twice, 22: lambda message: []})
    _, metrics = train_round(FedPW(), grid, array_record(MODEL))
    assert metrics["fedpw-quarantined"] == 2


def test_different_faults_are_not_shared() -> None:
    grid = ClientsGrid({21: replying(loss_of(-1.0)), 22: replying(loss_of([1.0]))})
    _, metrics = train_round(FedPW(), grid, array_record(MODEL))
    assert metrics["fedpw-quarantined"] == 2


def test_neither_failures_nor_strangers_nor_empty_clients_hide_it() -> None:
    def failing(message: Message) -> list[Message]:
        raise RuntimeError("no space left")

    def accompanied(message: Message) -> list[Message]:
        [reply] = replying(loss_of(-0.25))(message)
        return [reply, stray(train_reply(message), 404)]

    empty = replying(lambda content: content["metrics"].update({"num-examples": 0}))
    clients = {21: failing, 22: accompanied, 23: replying(loss_of(-7)), 24: empty}
    with pytest.raises(UnusableRepliesError, match="all 2 replies of round 1 have a negative"):
        train_round(FedPW(), ClientsGrid(clients), array_record(MODEL))


def test_the_first_round_with_replies_decides_where_the_first_had_none() -> None:
    strategy, arrays = FedPW(), array_record(MODEL)
    arrays, _ = train_round(
        strategy, ClientsGrid(dict.fromkeys(NODES, lambda message: [])), arrays, 1
    )
    broken = ClientsGrid(dict.fromkeys(NODES, replying(loss_of(-3))))
    with pytest.raises(UnusableRepliesError, match="replies of round 2 have a negative"):
        train_round(strategy, broken, arrays, 2)


# A missing loss


@pytest.mark.parametrize(
    ("reported", "said"),
    [
        ({"accuracy": 0.5}, r"the metrics that arrived are \['accuracy'\]\. "),
        ({"loss": 0.5, "accuracy": 0.5}, r"did you mean train_loss_key='loss'\?"),
        ({"eval_loss": 0.5, "train-loss": 0.5}, r"did you mean train_loss_key='train-loss'\?"),
        ({"trainlos": 0.5}, r"did you mean train_loss_key='trainlos'\? FedPW"),
        ({"loss": 0.5, "val_loss": 0.5}, r"did you mean train_loss_key='loss'\?"),
        ({"mean_loss": 0.5, "testLoss": 0.5, "train_val_loss": 1.0}, "='mean_loss'"),
        ({"latest_loss": 0.5, "valid-loss": 0.5}, "='latest_loss'"),
        ({"eval_loss": 0.5}, r"the metrics that arrived are \['eval_loss'\]\. "),
        ({"training_loss": 0.5, "loss": 0.5}, "='training_loss'"),
        ({"lossless_rate": 0.5, "loss_weight": 0.5}, r"\['loss_weight', 'lossless_rate'\]\. "),
        ({}, r"no metrics arrived\. FedPW"),
    ],
)
def test_a_missing_loss_lists_what_arrived_and_guesses(
    reported: dict[str, float], said: str
) -> None:
    def edit(content: RecordDict) -> None:
        content["metrics"] = MetricRecord({"num-examples": 9, **reported})

    grid = ClientsGrid(dict.fromkeys(NODES, replying(edit)))
    with pytest.raises(MissingLossError, match=said):
        train_round(FedPW(), grid, array_record(MODEL))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("0.5", r"a text \('0\.5'\)"),
        (True, r"a truth value \(True\)"),
        (b"\x01", r"bytes \(b'.*'\)"),
        ([], r"a list \(\[\]\)"),
        ("9" * 5000, r"a text \('9{5,20}\.\.\.9{5,20}'\)"),
    ],
    ids=["text", "truth", "bytes", "empty list", "a long text"],
)
def test_a_loss_that_is_no_number_is_shown_under_the_legacy_server(loss: Any, said: str) -> None:
    clients = plain_clients(
        NODES, dict.fromkeys(NODES, lambda node, ins: fit_result(named(ins.parameters), loss))
    )
    with pytest.raises(UnusableRepliesError, match=f"'train_loss' is {said}, not a number") as told:
        fit_round(legacy.FedPW(), clients)
    assert "did you mean" not in str(told.value)


# Clients that disagree


def test_two_kinds_of_private_arrays_are_named_as_a_disagreement() -> None:
    own = {21: "body.bias", 22: "body.weight", 23: "body.bias"}

    def client(message: Message) -> list[Message]:
        reply = train_reply(message)
        kept = own[message.metadata.dst_node_id]
        model = {n: a for n, a in ndarrays(reply.content["arrays"]).items() if n != kept}
        reply.content["arrays"] = array_record(model)
        return [reply]

    said = r"lacks the arrays \['body.bias'\], which other clients return.*the same ones"
    with pytest.raises(UnusableRepliesError, match=said):
        train_round(FedPW(), ClientsGrid(dict.fromkeys(NODES, client)), array_record(MODEL))


def claiming(client_id: int) -> Edit:
    return lambda content: content.update({"identity": ConfigRecord({"client-id": client_id})})


def test_one_client_id_for_all_nodes_ends_the_run_in_its_first_round() -> None:
    clients = {**dict.fromkeys(NODES, replying(claiming(35))), 24: replying(loss_of(-2.0))}
    said = r"all 3 replies of round 1 have the same client id.*client 35.*partition-id"
    with pytest.raises(UnusableRepliesError, match=f"(?s){said}"):
        train_round(FedPW(), ClientsGrid(clients), array_record(MODEL))


def test_so_it_does_under_the_legacy_server() -> None:
    def fit(node: int, ins: Any) -> Any:
        result = fit_result(named(ins.parameters))
        result.metrics["client-id"] = 0
        return result

    with pytest.raises(UnusableRepliesError, match=r"the same client id.*client 0"):
        fit_round(legacy.FedPW(), plain_clients(NODES, dict.fromkeys(NODES, fit)))


@pytest.mark.parametrize("other", [good_client, replying(claiming(36))], ids=["none", "another"])
def test_one_client_with_another_id_or_none_is_enough_to_go_on(other: Client) -> None:
    clients = {**dict.fromkeys(NODES, replying(claiming(35))), 22: other}
    _, metrics = train_round(FedPW(), ClientsGrid(clients), array_record(MODEL))
    assert metrics["fedpw-quarantined"] == 1
    assert len(metrics["fedpw-client-id"]) == 2  # type: ignore[arg-type]


def test_two_of_many_that_claim_one_id_are_one_client_that_was_restarted() -> None:
    clients = {**dict.fromkeys(range(31, 39), failing_train), 21: replying(claiming(7))}
    clients[22] = replying(claiming(7))
    _, metrics = train_round(FedPW(), ClientsGrid(clients), array_record(MODEL))
    assert (metrics["fedpw-quarantined"], metrics["fedpw-failed"]) == (1, 8)


def test_one_node_alone_may_claim_any_client_id() -> None:
    grid = ClientsGrid({21: replying(claiming(35)), 22: lambda message: []})
    _, metrics = train_round(FedPW(), grid, array_record(MODEL))
    assert metrics["fedpw-client-id"] == [35]


# The legacy server


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (lambda model: fit_result(model, loss=-12.5), r"a negative training loss.*-12\.5"),
        (lambda model: fit_result(model, loss=float("nan")), "not finite"),
        (lambda model: fit_result(one_more(model)), "unknown.*4"),
        (lambda model: fit_result(of_one(model)), r"\(1,\) instead of \(\)"),
        (lambda model: fit_result(float_counter(model)), "float32 instead of torch.int64"),
    ],
)
def test_the_legacy_server_says_the_same(result: Callable[[NDArrays], Any], said: str) -> None:
    clients = plain_clients(
        NODES, dict.fromkeys(NODES, lambda node, ins: result(named(ins.parameters)))
    )
    with pytest.raises(UnusableRepliesError, match=f"round 1 have .*{said}"):
        fit_round(legacy.FedPW(initial_parameters=INITIAL), clients)


# Rounds that change nothing


def failing_train(message: Message) -> list[Message]:
    if message.metadata.message_type == "train":
        raise MemoryError("the model is larger than this card")
    return [evaluate_reply(message)]


@pytest.mark.parametrize("strategy", [FedPW, baselines.EqualFedAvg])
def test_three_rounds_from_the_start_without_a_usable_reply_are_an_error_that_counts(
    strategy: Callable[[], FlowerFedAvg],
) -> None:
    clients: dict[int, Client] = {
        **{21: failing_train, 22: failing_train, 23: replying(diverged)},
        24: lambda message: [],
    }
    grid = ClientsGrid(clients)
    with pytest.raises(UnusableRepliesError) as raised:
        strategy().start(grid, array_record(MODEL), num_rounds=9)
    told = str(raised.value)
    assert told.startswith("3 rounds from the start had no reply that can be used")
    assert "6 times a failure (error 2: MemoryError: the model is larger than this card)" in told
    assert "3 times a training loss or arrays that are not finite" in told
    assert "3 times no reply" in told
    assert "lower the learning rate" in told
    assert "start(timeout=...)" in told


def test_three_rounds_with_one_client_say_what_to_change() -> None:
    strategy = FedPW(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1)
    grid = ClientsGrid({21: replying(loss_of([0.5]))})
    with pytest.raises(UnusableRepliesError, match=r"(?s)3 times a training.*sum\(losses\)"):
        strategy.start(grid, array_record(MODEL), num_rounds=4)


def test_three_rounds_without_any_reply_say_where_to_look() -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, lambda message: []))
    with pytest.raises(UnusableRepliesError, match=r"9 times no reply\. .*logs.*longer timeout"):
        FedPW().start(grid, array_record(MODEL), num_rounds=7)


def test_three_rounds_of_failures_say_that_the_log_has_them() -> None:
    grid = ClientsGrid(dict.fromkeys(NODES, failing_train))
    with pytest.raises(UnusableRepliesError, match=r"9 times a failure.*The log has each") as told:
        FedPW().start(grid, array_record(MODEL), num_rounds=7)
    assert "timeout" not in str(told.value)


def test_a_run_that_began_well_may_lose_any_number_of_rounds() -> None:
    def fading(message: Message) -> list[Message]:
        config = message.content.config_records["config"]
        return (good_client if config["server-round"] == 1 else failing_train)(message)

    grid = ClientsGrid(dict.fromkeys(NODES, fading))
    result = FedPW().start(grid, array_record(MODEL), num_rounds=6)
    assert [one["fedpw-failed"] for one in result.train_metrics_clientapp.values()] == [0, *[3] * 5]


def with_run_rounds(strategy: Any, grid: ClientsGrid, arrays: ArrayRecord, folder: Any) -> None:
    run_rounds(strategy, CheckpointStore(folder), grid, arrays, num_rounds=4)


def with_start(strategy: Any, grid: ClientsGrid, arrays: ArrayRecord, folder: Any) -> None:
    strategy.start(grid, arrays, num_rounds=4)


@pytest.mark.parametrize("run", [with_start, with_run_rounds])
@pytest.mark.parametrize("build", [FedPW, baselines.EqualFedAvg])
def test_a_run_whose_last_rounds_changed_nothing_says_so_at_its_end(
    build: Callable[[], Any], run: Any, tmp_path: Any, flower_log: pytest.LogCaptureFixture
) -> None:
    def fading(message: Message) -> list[Message]:
        config = message.content.config_records["config"]
        return (good_client if config["server-round"] < 3 else failing_train)(message)

    run(build(), ClientsGrid(dict.fromkeys(NODES, fading)), array_record(MODEL), tmp_path)
    told = [one.getMessage() for one in flower_log.records if one.levelno == logging.WARNING]
    assert told[-1].startswith("The run has ended, and its last 2 rounds changed nothing")
    assert "6 times a failure (error 2: MemoryError" in told[-1]


def test_a_checkpointed_legacy_server_says_so_too(
    tmp_path: Any, flower_log: pytest.LogCaptureFixture
) -> None:
    rounds = iter([False] * len(NODES) + [True] * 2 * len(NODES))

    def fading(node: int, ins: Any) -> Any:
        if next(rounds):
            raise MemoryError("the model is larger than this card")
        return fit_result({name: array + 1 for name, array in named(ins.parameters).items()})

    server = legacy.CheckpointedServer(
        client_manager=manager_of(plain_clients(NODES, dict.fromkeys(NODES, fading))),
        strategy=legacy.FedPW(initial_parameters=INITIAL),
        checkpoint_dir=tmp_path,
    )
    server.fit(3, timeout=None)
    assert "its last 2 rounds changed nothing" in flower_log.records[-1].getMessage()


@pytest.mark.parametrize("build", [FedPW, baselines.EqualFedAvg])
def test_a_run_whose_last_round_moved_the_model_says_nothing(
    build: Callable[[], Any], flower_log: pytest.LogCaptureFixture
) -> None:
    def recovering(message: Message) -> list[Message]:
        config = message.content.config_records["config"]
        return (good_client if config["server-round"] != 2 else failing_train)(message)

    build().start(ClientsGrid(dict.fromkeys(NODES, recovering)), array_record(MODEL), num_rounds=3)
    assert "The run has ended" not in flower_log.text


def test_the_log_counts_the_rounds_in_a_row(flower_log: pytest.LogCaptureFixture) -> None:
    strategy, arrays = FedPW(), array_record(MODEL)
    train_round(strategy, ClientsGrid(dict.fromkeys(NODES, good_client)), arrays, 1)
    for server_round in (2, 3):
        messages = strategy.configure_train(
            server_round, arrays, ConfigRecord(), ClientsGrid(dict.fromkeys(NODES, good_client))
        )
        assert len(list(messages)) == len(NODES)
        strategy.aggregate_train(server_round, [])
    assert "round 3 has no reply that can be used; the model stays as it is, for 2 rounds now" in (
        flower_log.text
    )
