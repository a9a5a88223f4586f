"""One client's fault costs its reply; the same fault of all is the project's, and ends the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from support.adjusting_clients import failing, following, silent
from support.federation import APIS, BASELINES, MESSAGE, Federation, both_apis
from support.grid import Client
from support.legacy_federation import app_grid
from support.records import NDArrays, array_record, ndarrays
from support.small_model import evaluate_reply, good_client, stray, train_reply

import fedpw_flwr
from fedpw_flwr import FedPWClient, MissingLossError, numpy_client_app
from fedpw_flwr.rounds.faults import UnusableRepliesError

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


def arrays_of(change: Callable[[NDArrays], NDArrays]) -> Edit:
    def edit(content: RecordDict) -> None:
        content["arrays"] = array_record(change(ndarrays(content.array_records["arrays"])))

    return edit


def with_bias(change: Callable[[np.ndarray], Any]) -> Edit:
    return arrays_of(lambda model: {**model, "body.bias": change(model["body.bias"])})


def with_counter(change: Callable[[np.ndarray], Any]) -> Edit:
    name = "norm.num_batches_tracked"
    return arrays_of(lambda model: {**model, name: change(model[name])})


def loss_of(value: Any) -> Edit:
    return lambda content: content.metric_records["metrics"].update({"train_loss": value})


def telling(value: Any) -> Edit:
    """A loss that no MetricRecord takes, as a NumPyClient can report one."""

    def edit(content: RecordDict) -> None:
        del content.metric_records["metrics"]["train_loss"]
        content["other-metrics"] = ConfigRecord({"train_loss": value})

    return edit


def reporting(**metrics: Any) -> Edit:
    """These metrics and no others."""

    def edit(content: RecordDict) -> None:
        content["metrics"] = MetricRecord({"num-examples": 8, **metrics})

    return edit


def claiming(client_id: int) -> Edit:
    return lambda content: content.update({"identity": ConfigRecord({"client-id": client_id})})


SHARED: dict[str, tuple[Edit, str]] = {
    "no loss": (
        reporting(train_logloss=0.4, lr=0.1),
        r"no client reported.*did you mean train_loss_key='train_logloss'\?",
    ),
    "a list": (loss_of([0.7, 0.2]), r"a list \(\[0.7, 0.2\]\).*sum\(losses\) / len\(losses\)"),
    "an empty list": (loss_of([]), r"a list \(\[\]\)"),
    "a text": (telling("0.5"), r"'train_loss' is a text \('0\.5'\), not a number"),
    "a long text": (telling("9" * 5000), r"a text \('9{5,20}\.\.\.9{5,20}'\)"),
    "a truth value": (telling(True), r"'train_loss' is a truth value \(True\), not a number"),
    "bytes": (telling(b"\x01"), r"'train_loss' is bytes \(b'.*'\), not a number"),
    "negative": (
        loss_of(-41.5),
        r"a negative loss.*-41\.5.* weights clients by their losses.*train_loss_key=",
    ),
    "NaN": (loss_of(float("nan")), "finite.*'train_loss' is nan.*learning rate, check the data"),
    "infinite": (loss_of(float("inf")), "not finite.*'train_loss' is inf.*learning rate"),
    "NaN in an array": (
        with_bias(lambda bias: bias * np.float32(np.nan)),
        "not finite.*'body.bias' holds values.*learning rate",
    ),
    "far too large": (
        with_bias(lambda bias: bias + np.float32(5e17)),
        "far too large.*'body.bias' has the norm.*learning rate",
    ),
    "other names": (
        arrays_of(lambda model: {str(index): one for index, one in enumerate(model.values())}),
        r"missing \['body.bias', .*\], unknown \['0', '1', '2', ",
    ),
    "one more": (
        arrays_of(lambda model: {**model, "head.weight": np.zeros(5, np.float32)}),
        r"unknown \['(head.weight|surplus array 5)'\].*initial_arrays=ArrayRecord",
    ),
    "(1,) for ()": (
        with_counter(lambda counter: counter.reshape(1)),
        r"has the shape \(1,\) instead of \(\).*reshape",
    ),
    "another shape": (
        with_bias(lambda bias: bias.reshape(2, 2)),
        r"has the shape \(2, 2\) instead of \(4,\)",
    ),
    "another dtype": (
        with_counter(lambda counter: counter.astype(np.float32)),
        "is torch.float32 instead of torch.int64.*astype",
    ),
    "no arrays": (lambda content: content.pop("arrays"), "0 ArrayRecords.*ArrayRecord"),
}
"""What all replies have, and what the error says: fault, what arrived, what to change."""

ARRAY_KINDS = ["other names", "one more", "(1,) for ()", "another shape", "another dtype"]
OF_MESSAGES = {"a list", "an empty list", "other names", "no arrays"}
OF_NUMPY_CLIENTS = {"a text", "a long text", "a truth value", "bytes"}
TERM = next(baseline for baseline in BASELINES if baseline.name == "term")
CASES = [
    pytest.param(api, kind, id=f"{api.name}-{kind}")
    for api in [*APIS, TERM]
    for kind in SHARED
    if api in (MESSAGE, TERM) or kind not in OF_MESSAGES
]

all_kinds = pytest.mark.parametrize(("api", "kind"), CASES)


@all_kinds
def test_a_fault_that_all_replies_share_ends_the_run_in_its_first_round(
    api: Federation, kind: str
) -> None:
    edit, said = SHARED[kind]
    trained = 0

    def client(message: Message) -> list[Message]:
        nonlocal trained
        trained += 1
        return list(replying(edit)(message))

    with pytest.raises(UnusableRepliesError, match=f"(?s){said}") as raised:
        api.run(api.strategy(), dict.fromkeys(NODES, client), 5)
    assert "round 1" in str(raised.value)
    assert trained == len(NODES)
    assert "TERM" in str(raised.value) or "FedPW" not in str(raised.value) or api is not TERM
    if kind in OF_NUMPY_CLIENTS:
        assert "did you mean" not in str(raised.value)


@pytest.mark.parametrize("kind", [*ARRAY_KINDS, "NaN in an array", "no arrays"])
@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_so_it_does_where_clients_adjust_their_own_updates(kind: str, upload: str) -> None:
    edit, said = SHARED[kind]
    client = following(lambda message: next(iter(replying(edit)(message))))
    strategy = MESSAGE.strategy(adjustment="client", upload=upload)
    with pytest.raises(UnusableRepliesError, match=f"(?s)all 3 replies of round 1 have .*{said}"):
        MESSAGE.train_round(strategy, dict.fromkeys(NODES, client))


@pytest.mark.parametrize("wrapped", [True, False])
def test_so_it_does_where_numpy_clients_return_one_array_too_many(wrapped: bool) -> None:
    class Surplus(NumPyClient):
        def fit(self, parameters: list[Any], config: dict[str, Any]) -> Any:
            return [*parameters, np.zeros(7, np.float32)], 4, {"train_loss": 1.25}

    def client_of(context: Context) -> NumPyClient:
        return FedPWClient(Surplus(), device="cpu") if wrapped else Surplus()

    clients = app_grid(numpy_client_app(client_of), NODES).clients
    with pytest.raises(UnusableRepliesError, match=r"round 1 have other.*\['surplus array \d'\]"):
        MESSAGE.train_round(MESSAGE.strategy(adjustment="client"), clients)


@all_kinds
def test_one_good_reply_is_enough_to_go_on(api: Federation, kind: str) -> None:
    clients = {**dict.fromkeys(NODES, replying(SHARED[kind][0])), 23: good_client}
    _, metrics = api.train_round(api.strategy(), clients)
    assert metrics["client-id" if api is TERM else "fedpw-client-id"] == [23]
    assert api.counts(metrics) == (2, 0, 0)


@both_apis
def test_one_reply_alone_shares_its_fault_with_nobody(api: Federation) -> None:
    strategy = api.strategy(min_train_nodes=1, min_available_nodes=1)
    _, metrics = api.train_round(strategy, {21: replying(SHARED["negative"][0])})
    assert api.counts(metrics) == (1, 0, 0)


def test_two_replies_of_one_node_are_one_clients() -> None:
    def twice(message: Message) -> list[Message]:
        return list(replying(loss_of(-2.5))(message)) * 2

    _, metrics = MESSAGE.train_round(MESSAGE.strategy(), {21: twice, 22: silent})
    assert metrics["fedpw-quarantined"] == 2


@both_apis
def test_different_faults_are_not_shared(api: Federation) -> None:
    clients = {21: replying(loss_of(-1.0)), 22: replying(loss_of(float("nan")))}
    _, metrics = api.train_round(api.strategy(), clients)
    assert metrics["fedpw-quarantined"] == 2


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (loss_of(-0.25), "all 2 replies of round 1 have a negative"),
        (reporting(), "no client reported its training loss"),
    ],
)
def test_neither_failures_nor_strangers_nor_empty_clients_hide_it(edit: Edit, said: str) -> None:
    def accompanied(message: Message) -> list[Message]:
        return [*replying(edit)(message), stray(train_reply(message), 404)]

    empty = replying(lambda content: content.metric_records["metrics"].update({"num-examples": 0}))
    clients = {21: failing, 22: accompanied, 23: replying(edit), 24: empty}
    with pytest.raises(UnusableRepliesError, match=said):
        MESSAGE.train_round(MESSAGE.strategy(), clients)


@both_apis
def test_the_first_round_with_replies_decides_where_the_first_had_none(api: Federation) -> None:
    strategy = api.strategy()
    arrays, _ = api.train_round(strategy, dict.fromkeys(NODES, silent))
    broken = dict.fromkeys(NODES, replying(loss_of(-3)))
    with pytest.raises(UnusableRepliesError, match="replies of round 2 have a negative"):
        api.train_round(strategy, broken, arrays, 2)


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
    clients = dict.fromkeys(NODES, replying(reporting(**reported)))
    with pytest.raises(MissingLossError, match=said):
        MESSAGE.train_round(MESSAGE.strategy(), clients)


@both_apis
def test_a_missing_loss_names_the_key_and_shows_the_lines_that_report_it(api: Federation) -> None:
    with pytest.raises(MissingLossError) as raised:
        api.run(api.strategy(train_loss_key="my-loss"), dict.fromkeys(NODES, good_client), 2)
    told = str(raised.value)
    assert 'MetricRecord({"my-loss": ' in told
    assert '"num-examples": len(trainset)' in told
    assert 'return parameters, num_examples, {"my-loss": ' in told
    assert 'FedPW(train_loss_key="' in told


def test_it_shows_the_key_of_the_examples() -> None:
    strategy = MESSAGE.strategy(train_loss_key="my-loss", weighted_by_key="rows")
    with pytest.raises(MissingLossError, match='"rows": len'):
        MESSAGE.train_round(strategy, dict.fromkeys(NODES, good_client))


def test_it_can_be_caught_by_its_public_names() -> None:
    assert fedpw_flwr.MissingLossError is fedpw_flwr.legacy.MissingLossError
    assert issubclass(MissingLossError, ValueError)


@both_apis
def test_without_both_parts_of_the_method_no_loss_is_needed(api: Federation) -> None:
    strategy = api.strategy(adapt_weights=False, adjust_parameters=False)
    _, metrics = api.train_round(strategy, dict.fromkeys(NODES, replying(reporting())))
    assert metrics["fedpw-quarantined"] == 0


# Clients that disagree


def test_two_kinds_of_private_arrays_are_named_as_a_disagreement() -> None:
    own = {21: "body.bias", 22: "body.weight", 23: "body.bias"}

    def keeping(node: int) -> Client:
        kept = own[node]
        without = arrays_of(lambda model: {n: a for n, a in model.items() if n != kept})
        return replying(without)

    said = r"lacks the arrays \['body.bias'\], which other clients return.*the same ones"
    with pytest.raises(UnusableRepliesError, match=said):
        MESSAGE.train_round(MESSAGE.strategy(), {node: keeping(node) for node in NODES})


@both_apis
def test_one_client_id_for_all_nodes_ends_the_run_in_its_first_round(api: Federation) -> None:
    clients = {**dict.fromkeys(NODES, replying(claiming(0))), 24: replying(loss_of(-2.0))}
    said = r"all 3 replies of round 1 have the same client id.*client 0.*partition-id"
    with pytest.raises(UnusableRepliesError, match=f"(?s){said}"):
        api.train_round(api.strategy(), clients)


@both_apis
@pytest.mark.parametrize("other", [good_client, replying(claiming(36))], ids=["none", "another"])
def test_one_client_with_another_id_or_none_is_enough_to_go_on(
    api: Federation, other: Client
) -> None:
    clients = {**dict.fromkeys(NODES, replying(claiming(35))), 22: other}
    _, metrics = api.train_round(api.strategy(), clients)
    assert metrics["fedpw-quarantined"] == 1
    assert len(metrics["fedpw-client-id"]) == 2


def test_two_of_many_that_claim_one_id_are_one_client_that_was_restarted() -> None:
    clients = {**dict.fromkeys(range(31, 39), failing), 21: replying(claiming(7))}
    clients[22] = replying(claiming(7))
    _, metrics = MESSAGE.train_round(MESSAGE.strategy(), clients)
    assert MESSAGE.counts(metrics) == (1, 8, 0)


def test_one_node_alone_may_claim_any_client_id() -> None:
    clients = {21: replying(claiming(35)), 22: silent}
    _, metrics = MESSAGE.train_round(MESSAGE.strategy(), clients)
    assert metrics["fedpw-client-id"] == [35]
