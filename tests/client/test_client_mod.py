"""fedpw_mod: one entry in the mods of a ClientApp whose train function knows nothing of FedPW."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from support.clients import (
    NODES,
    NoisyClient,
    answer,
    arrays_of,
    config_of,
    context_of,
    functions_app,
    message_to,
    noisy_train,
    request_entries,
    train_message,
)
from support.records import array_record, payloads
from support.small_model import MODEL

from fedpw_flwr import FedPWClient, FedPWMod, fedpw_mod, numpy_client_app
from fedpw_flwr.wire.adjustment import REPORT_KEY, REQUEST_KEY

Config = dict[str, Any]

WEIGHT = next(iter(MODEL.values()))
ADJUSTMENT = {0: (np.arange(WEIGHT.size) % 3 == 0, 1.5)}
REQUESTS = {
    "first round": request_entries(0.0),
    "mask": request_entries(0.3),
    "mask and rescale": request_entries(0.3, ADJUSTMENT),
    "packed": request_entries(0.3, ADJUSTMENT, "packed"),
    "packed as float16": request_entries(0.3, ADJUSTMENT, "packed", "float16"),
}
asked = pytest.mark.parametrize("entries", REQUESTS.values(), ids=REQUESTS)


def mod_app(train: ClientAppCallable = noisy_train, mod: FedPWMod = fedpw_mod) -> ClientApp:
    return functions_app([mod], train)


def replying(content: Callable[[Message], RecordDict | Error]) -> ClientAppCallable:
    def train(message: Message, context: Context) -> Message:
        return Message(content(message), reply_to=message)

    return train


def never(message: Message, context: Context) -> Message:
    raise AssertionError("the train function was called")


def trained_record(message: Message) -> ArrayRecord:
    return arrays_of(noisy_train(message, context_of(NODES[0])))


# What it sends


def numpy_app(wrap: Callable[[NumPyClient], NumPyClient], mods: list[Mod]) -> ClientApp:
    return numpy_client_app(lambda context: wrap(NoisyClient(context.node_id)), mods=mods)


APPS = {
    "mod of the app": mod_app(),
    "mod of the function": functions_app([fedpw_mod], of_function=True),
    "mod around a NumPyClient": numpy_app(lambda client: client, [fedpw_mod]),
    "mod around the wrapper": numpy_app(FedPWClient, [fedpw_mod]),
    "mod twice": functions_app([fedpw_mod, fedpw_mod]),
}


@asked
@pytest.mark.parametrize("app", APPS)
def test_the_mod_sends_what_the_wrapper_sends_and_whoever_comes_first_adjusts_alone(
    entries: Config, app: str
) -> None:
    expected = answer(numpy_app(FedPWClient, []), train_message(MODEL, entries))
    assert set(expected.content) == {"arrays", "metrics", REPORT_KEY}
    assert answer(APPS[app], train_message(MODEL, entries)).content == expected.content


@asked
def test_the_train_function_sees_the_configuration_without_fedpws_entries(entries: Config) -> None:
    seen: list[Config] = []

    def train(message: Message, context: Context) -> Message:
        seen.append(config_of(message))
        return noisy_train(message, context)

    config = {"lr": 0.1, "name": "x", "blob": b"\0", "sizes": [1, 2], "flag": True}
    answer(mod_app(train), train_message(MODEL, {**config, **entries}))
    assert seen == [{"server-round": 1, **config}]


def test_other_records_of_a_reply_are_untouched() -> None:
    def content(message: Message) -> RecordDict:
        return RecordDict(
            {
                "new-model": trained_record(message),
                "numbers": MetricRecord({"train_loss": 0.5, "per-class": [0.5, 0.25]}),
                "more-numbers": MetricRecord({"seconds": 3}),
                "identity": ConfigRecord({"client-id": 4}),
                "notes": ConfigRecord({"text": "x", "blob": b"\0"}),
            }
        )

    message = train_message(MODEL, REQUESTS["mask"])
    expected = content(message)
    reply = answer(mod_app(replying(content)), message).content
    assert set(reply) == {*expected, REPORT_KEY}
    for name in set(expected) - {"new-model"}:
        assert reply[name] == expected[name]
    assert reply["new-model"] != expected["new-model"]
    assert list(reply["new-model"]) == list(MODEL)


def test_arrays_may_come_back_in_any_order() -> None:
    def content(message: Message) -> RecordDict:
        arrays = trained_record(message)
        return RecordDict({"arrays": ArrayRecord({name: arrays[name] for name in [*arrays][::-1]})})

    reply = answer(mod_app(replying(content)), train_message(MODEL, REQUESTS["mask"]))
    expected = answer(mod_app(), train_message(MODEL, REQUESTS["mask"]))
    assert payloads(arrays_of(reply)) == payloads(arrays_of(expected))


def consumed(message: Message, reply: Message) -> Message:
    arrays_of(message).to_torch_state_dict(keep_input=False)
    return reply


def written_into(message: Message, reply: Message) -> Message:
    arrays = arrays_of(message)
    arrays.update(arrays_of(reply))
    return Message(RecordDict({**reply.content, "arrays": arrays}), reply_to=message)


@asked
@pytest.mark.parametrize("use", [consumed, written_into])
def test_the_train_function_may_use_up_the_record_it_was_sent(
    use: Callable[[Message, Message], Message], entries: Config
) -> None:
    def train(message: Message, context: Context) -> Message:
        return use(message, noisy_train(message, context))

    reply = answer(mod_app(train), train_message(MODEL, entries)).content
    assert reply == answer(mod_app(), train_message(MODEL, entries)).content


# What it leaves alone


@pytest.mark.parametrize("kind", ["evaluate", "query"])
def test_messages_of_other_kinds_pass_untouched(kind: str) -> None:
    seen: list[Message] = []
    app = ClientApp(mods=[fedpw_mod])

    @app.evaluate()
    @app.query()
    def function(message: Message, context: Context) -> Message:
        seen.append(message)
        return Message(RecordDict({"answer": ConfigRecord({"a": 1})}), reply_to=message)

    message = train_message(MODEL, {**REQUESTS["mask"], "lr": 0.1}, kind)
    before = payloads(arrays_of(message)), config_of(message)
    reply = app(message, context_of(NODES[0]))
    assert seen == [message]
    assert (payloads(arrays_of(message)), config_of(message)) == before
    assert dict(reply.content) == {"answer": ConfigRecord({"a": 1})}


def test_training_that_asks_for_nothing_passes_untouched() -> None:
    replies: list[Message] = []

    def train(message: Message, context: Context) -> Message:
        assert config_of(message) == {"server-round": 1, "lr": 0.1}
        replies.append(noisy_train(message, context))
        return replies[0]

    reply = mod_app(train)(train_message(MODEL, {"lr": 0.1}), context_of(NODES[0]))
    assert reply is replies[0]
    assert set(reply.content) == {"arrays", "metrics"}


def test_training_without_model_and_configuration_passes_untouched() -> None:
    train = replying(lambda message: RecordDict({"answer": ConfigRecord({"a": 1})}))
    reply = answer(mod_app(train), message_to(RecordDict()))
    assert dict(reply.content) == {"answer": ConfigRecord({"a": 1})}


def test_an_action_of_ones_own_is_adjusted_like_any_training() -> None:
    app = ClientApp(mods=[fedpw_mod])
    app.train("again")(noisy_train)
    reply = answer(app, train_message(MODEL, REQUESTS["mask"], "train.again"))
    expected = answer(mod_app(), train_message(MODEL, REQUESTS["mask"]))
    assert reply.content == expected.content


def test_an_error_reply_passes_untouched() -> None:
    train = replying(lambda message: Error(77, "no data"))
    reply = mod_app(train)(train_message(MODEL, REQUESTS["mask"]), context_of(NODES[0]))
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (77, "no data")


# What it refuses


@pytest.mark.parametrize("kind", ["client_fn", "functions"])
def test_a_legacy_servers_message_is_an_error_before_training_that_says_what_to_do(
    kind: str,
) -> None:
    def no_client(context: Context) -> Any:
        raise AssertionError("the client was built")

    app = mod_app(never) if kind == "functions" else ClientApp(no_client, mods=[fedpw_mod])
    content = RecordDict(
        {
            "fitins.parameters": array_record(MODEL),
            "fitins.config": ConfigRecord(dict(REQUESTS["mask"])),
        }
    )
    with pytest.raises(ValueError, match="legacy strategy") as raised:
        answer(app, message_to(content))
    assert "FedPWClient(client).to_client()" in str(raised.value)
    assert "fedpw_flwr.FedPW" in str(raised.value)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (b"?", "cannot be read"),
        ("text", "not bytes"),
        (b'{"version": 2}', "same version on server and clients"),
    ],
)
def test_a_request_that_cannot_be_read_is_an_error_before_training(
    entry: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        answer(mod_app(never), train_message(MODEL, {REQUEST_KEY: entry}))


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (ConfigRecord({"a": 1}), r"ConfigRecords.*config.*more"),
        (array_record(MODEL), r"2 ArrayRecords.*arrays.*more"),
    ],
    ids=["configuration", "model"],
)
def test_a_second_record_is_an_error_before_training(more: Any, complaint: str) -> None:
    message = train_message(MODEL, REQUESTS["mask"])
    with pytest.raises(ValueError, match=complaint):
        answer(mod_app(never), message_to(RecordDict({**message.content, "more": more})))


def renamed(message: Message) -> ArrayRecord:
    return ArrayRecord({f"model.{name}": array for name, array in trained_record(message).items()})


def too_few(message: Message) -> ArrayRecord:
    arrays = trained_record(message)
    return ArrayRecord({name: arrays[name] for name in [*arrays][1:]})


def with_weight(change: Callable[[Any], Any]) -> Callable[[Message], ArrayRecord]:
    def arrays(message: Message) -> ArrayRecord:
        model = trained_record(message)
        name = next(iter(model))
        return ArrayRecord({**model, name: Array(change(model[name].numpy()))})

    return arrays


OTHER_MODELS: dict[str, Callable[[Message], list[ArrayRecord]]] = {
    "other names": lambda message: [renamed(message)],
    "too few": lambda message: [too_few(message)],
    "without arrays": lambda message: [ArrayRecord({})],
    "transposed": lambda message: [with_weight(lambda array: array.T.copy())(message)],
    "none": lambda message: [],
    "two": lambda message: [trained_record(message)] * 2,
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_another_model_than_was_sent_goes_to_the_server_as_trained(kind: str) -> None:
    def content(message: Message) -> RecordDict:
        return RecordDict({str(i): model for i, model in enumerate(OTHER_MODELS[kind](message))})

    message = train_message(MODEL, REQUESTS["mask"])
    with_mod, without = mod_app(replying(content)), functions_app([], replying(content))
    assert answer(with_mod, message).content == answer(without, message).content


@pytest.mark.parametrize("dtype", [np.longdouble, np.float64, ">f4"])
@pytest.mark.parametrize("entries", ["mask", "packed"])
def test_floats_of_any_width_are_adjusted_in_the_models(dtype: Any, entries: str) -> None:
    train = replying(
        lambda message: RecordDict(
            {"arrays": with_weight(lambda array: array.astype(dtype))(message)}
        )
    )
    reply, expected = (
        answer(app, train_message(MODEL, REQUESTS[entries])) for app in (mod_app(train), mod_app())
    )
    assert payloads(arrays_of(reply)) == payloads(arrays_of(expected))
    assert reply.content.config_records[REPORT_KEY] == expected.content.config_records[REPORT_KEY]


@pytest.mark.parametrize("device", ["abacus", "cuda:77", "meta"])
@pytest.mark.parametrize("made", [FedPWMod, partial(FedPWClient, NoisyClient(11))])
def test_a_device_that_is_not_there_is_refused_at_once(
    made: Callable[..., Any], device: str
) -> None:
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used here"):
        made(device=device)
