"""The ClientApp: what a client replies, and that its reply depends on nothing but the question."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from support.app_federation import (
    DOMAIN_OF_CLIENT,
    NUM_CLIENTS,
    OVERRIDES,
    TRAINING_PICTURES,
    AppGrid,
    client_context,
    experiment,
    initial_arrays,
    message_to,
)
from support.clients import over_the_wire
from support.records import payloads

from fedpw_flwr.lab.app.client_app import app
from fedpw_flwr.lab.app.recording import client_metrics
from fedpw_flwr.lab.config.configuration import ConfigurationError
from fedpw_flwr.lab.training.evaluation import evaluate
from fedpw_flwr.lab.training.loop import client_generator, train

DROPOUT = OVERRIDES.replace(
    "model=cnn model.width=4",
    "model=cnn ~model.width model._target_=support.dropout_model.DropoutModel ~model.normalisation",
)
"""A model that draws random numbers while it trains."""

BATCHNORM = OVERRIDES.replace("model=cnn", "model=resnet10")


def train_reply(
    client: int,
    arrays: ArrayRecord | None = None,
    server_round: int = 1,
    overrides: str = OVERRIDES,
    asked_for_initial_loss: bool = False,
) -> Message:
    sent = initial_arrays(overrides) if arrays is None else arrays
    message = message_to(client, sent, "train", server_round)
    if asked_for_initial_loss:
        message.content.config_records["config"]["report-initial-loss"] = True
    return over_the_wire(app(over_the_wire(message), client_context(client, overrides=overrides)))


def evaluate_reply(client: int, arrays: ArrayRecord) -> Message:
    message = over_the_wire(message_to(client, arrays, "evaluate"))
    return over_the_wire(app(message, client_context(client)))


@pytest.mark.parametrize("model", ["cnn", "resnet10"])
def test_a_training_reply_has_the_names_shapes_and_dtypes_that_were_sent(model: str) -> None:
    overrides = OVERRIDES.replace("model=cnn", f"model={model}")
    sent = initial_arrays(overrides)

    arrays = train_reply(0, overrides=overrides).content["arrays"]

    assert isinstance(arrays, ArrayRecord)
    assert [entry[:3] for entry in payloads(arrays)] == [entry[:3] for entry in payloads(sent)]
    assert payloads(arrays) != payloads(sent)
    assert all(np.isfinite(array.numpy()).all() for array in arrays.values())


def test_counters_of_batchnorm_stay_integers_and_count_the_batches() -> None:
    overrides = f"{BATCHNORM} client.batch_size=8"

    arrays = train_reply(0, overrides=overrides).content["arrays"]

    counter = arrays["bn.num_batches_tracked"]
    assert (counter.dtype, counter.shape) == ("int64", ())
    assert counter.numpy() == TRAINING_PICTURES["scans"] / 8


@pytest.mark.parametrize("client", range(NUM_CLIENTS))
def test_a_training_reply_reports_loss_examples_and_identity(client: int) -> None:
    content = train_reply(client).content

    assert set(content.metric_records["metrics"]) == {"train_loss", "num-examples"}
    metrics = content.metric_records["metrics"]
    assert metrics["num-examples"] == TRAINING_PICTURES[DOMAIN_OF_CLIENT[client]]
    # An untrained model guesses among ten digits.
    assert metrics["train_loss"] == pytest.approx(math.log(10), rel=0.1)
    assert dict(content.config_records["identity"]) == {"client-id": client, "answers": True}


def test_a_client_trains_what_it_was_sent_as_the_plain_loop_does_on_its_own_share() -> None:
    client, server_round = 5, 3
    built = experiment()
    sent = train_reply(1).content["arrays"]
    model = built.new_model()
    model.load_state_dict(sent.to_torch_state_dict())
    loss = train(
        model,
        built.shares[client].train,
        built.client,
        built.normalisation,
        generator=client_generator(built.seed, server_round, client),
    )

    content = train_reply(client, sent, server_round).content

    assert content["metrics"]["train_loss"] == loss
    for name, tensor in content["arrays"].to_torch_state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_the_same_question_gives_the_same_bits_whatever_ran_before_in_the_process() -> None:
    arrays = initial_arrays()
    first = train_reply(0, arrays, server_round=2).content

    train_reply(7, arrays)
    evaluate_reply(0, arrays)
    # A run of another model and seed: the worker's caches belong to it now.
    train_reply(0, overrides=f"{OVERRIDES} seed=1 model.width=3")
    torch.manual_seed(99)
    torch.rand(5)
    second = train_reply(0, arrays, server_round=2).content

    assert payloads(second["arrays"]) == payloads(first["arrays"])
    assert second["metrics"] == first["metrics"]
    assert second["identity"] == first["identity"]


def test_a_model_that_draws_random_numbers_gives_the_same_bits_too() -> None:
    torch.manual_seed(1)
    first = train_reply(0, overrides=DROPOUT).content["arrays"]
    torch.manual_seed(2)
    second = train_reply(0, overrides=DROPOUT).content["arrays"]
    other_round = train_reply(0, server_round=2, overrides=DROPOUT).content["arrays"]

    assert payloads(second) == payloads(first)
    assert payloads(other_round) != payloads(first)


def test_another_round_partition_or_seed_gives_other_arrays() -> None:
    arrays = initial_arrays()
    reply = payloads(train_reply(0, arrays).content["arrays"])

    assert payloads(train_reply(0, arrays, server_round=2).content["arrays"]) != reply
    assert payloads(train_reply(1, arrays).content["arrays"]) != reply
    other_seed = train_reply(0, arrays, overrides=f"{OVERRIDES} seed=1")
    assert payloads(other_seed.content["arrays"]) != reply


def initial_losses(overrides: str, arrays: ArrayRecord) -> list[float]:
    """The loss of a model over every client's training pictures, as they are."""
    built = experiment(overrides)
    model = built.new_model()
    model.load_state_dict(arrays.to_torch_state_dict())
    return [evaluate(model, share.train, built.normalisation).loss for share in built.shares]


@pytest.mark.parametrize("overrides", [OVERRIDES, BATCHNORM, DROPOUT])
def test_a_client_that_is_asked_trains_to_the_same_bits(overrides: str) -> None:
    arrays = train_reply(1, overrides=overrides).content["arrays"]

    plain = train_reply(0, arrays, 2, overrides).content
    asked = train_reply(0, arrays, 2, overrides, asked_for_initial_loss=True).content
    after = train_reply(0, arrays, 2, overrides).content

    assert payloads(asked["arrays"]) == payloads(plain["arrays"]) == payloads(after["arrays"])
    assert asked["metrics"]["train_loss"] == plain["metrics"]["train_loss"]
    assert after["metrics"] == plain["metrics"]


@pytest.mark.parametrize(
    ("network", "strategy"), [(OVERRIDES, "afl"), (BATCHNORM, "term"), (OVERRIDES, "qfedavg")]
)
def test_methods_of_losses_are_given_those_of_the_model_they_sent(
    network: str, strategy: str
) -> None:
    overrides = f"{network} strategy={strategy}"
    deciding = experiment(overrides).new_strategy(client_metrics)
    grid, arrays = AppGrid(overrides=overrides), initial_arrays(overrides)
    for server_round in (1, 2):
        sent = arrays
        messages = list(deciding.configure_train(server_round, sent, ConfigRecord(), grid))
        trained, metrics = deciding.aggregate_train(server_round, grid.send_and_receive(messages))
        assert trained is not None
        assert metrics is not None
        arrays = trained
        assert metrics["client-id"] == list(range(NUM_CLIENTS))
        assert metrics["client-loss"] == initial_losses(overrides, sent)
        # What a run records as its training loss is the mean over local steps, for every method.
        local_losses = [
            train_reply(client, sent, server_round, overrides).content["metrics"]["train_loss"]
            for client in range(NUM_CLIENTS)
        ]
        sizes = [TRAINING_PICTURES[domain] for domain in DOMAIN_OF_CLIENT]
        assert metrics["train_loss"] == pytest.approx(np.average(local_losses, weights=sizes))


def test_a_reply_does_not_share_memory_with_the_worker_s_model() -> None:
    arrays = initial_arrays()
    reply = app(message_to(0, arrays), client_context(0))
    before = payloads(reply.content["arrays"])

    app(message_to(3, arrays), client_context(3))

    assert payloads(reply.content["arrays"]) == before


@pytest.mark.parametrize("client", [0, 3, 7])
def test_a_client_evaluates_on_the_test_pictures_of_its_domain(client: int) -> None:
    built = experiment()
    arrays = train_reply(client).content["arrays"]
    model = built.new_model()
    model.load_state_dict(arrays.to_torch_state_dict())
    (domain,) = (domain for domain in built.data.domains if domain.name == DOMAIN_OF_CLIENT[client])
    expected = evaluate(model, domain.test, built.normalisation)

    content = evaluate_reply(client, arrays).content

    assert dict(content["metrics"]) == {
        "eval_loss": expected.loss,
        "eval_acc": expected.accuracy,
        "num-examples": len(domain.test),
    }
    assert dict(content["identity"]) == {"client-id": client, "answers": True}
    assert not content.array_records


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"num-partitions": NUM_CLIENTS - 1}, f"7 clients, .* num-supernodes={NUM_CLIENTS}"),
        ({"num-partitions": NUM_CLIENTS + 1}, f"9 clients, .* num-supernodes={NUM_CLIENTS}"),
        ({"partition-id": None}, '--node-config "partition-id=0 num-partitions='),
        ({"num-partitions": None}, '--node-config "partition-id=0 num-partitions='),
        ({"partition-id": NUM_CLIENTS}, f"partition-id={NUM_CLIENTS}"),
        ({"partition-id": -1}, "partition-id=-1"),
    ],
)
def test_a_node_that_is_no_client_of_the_experiment_is_told_what_to_change(
    kind: str, node: dict[str, int | None], said: str
) -> None:
    context = client_context(0)
    given = {**context.node_config, **node}
    context.node_config = {key: value for key, value in given.items() if value is not None}

    with pytest.raises(ConfigurationError, match=said):
        app(message_to(0, initial_arrays(), kind), context)


def test_a_wrong_override_is_refused_by_the_client_as_well() -> None:
    context = client_context(0, overrides="client.epoch=1")
    with pytest.raises(ConfigurationError, match="epoch"):
        app(message_to(0, initial_arrays()), context)
