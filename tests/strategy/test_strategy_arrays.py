"""What goes in as an array comes out as the same kind of array."""

from __future__ import annotations

import numpy as np
import pytest
from federation import MODEL, good_client, train_reply, trained
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from support.grid import ClientsGrid, train_round
from support.records import array_record, ndarrays, payloads, train_content

from fedpw_flwr import FedPW

NODES = [1, 2, 3]


def run(model: dict[str, np.ndarray], num_rounds: int = 3, **settings: object) -> ArrayRecord:
    def client(message: Message) -> list[Message]:
        if message.metadata.message_type == "evaluate":
            return good_client(message)
        return [train_reply(message)]

    grid = ClientsGrid(dict.fromkeys(NODES, client))
    strategy = FedPW(**settings)
    result = strategy.start(grid=grid, initial_arrays=array_record(model), num_rounds=num_rounds)
    for metrics in result.train_metrics_clientapp.values():
        assert metrics["fedpw-quarantined"] == 0
        assert metrics["fedpw-failed"] == 0
    return result.arrays


def test_int64_counters_stay_int64_and_follow_the_clients() -> None:
    counter = run(MODEL)["norm.num_batches_tracked"].numpy()
    assert counter.dtype == np.int64
    assert counter.shape == ()
    assert counter == 13


@pytest.mark.parametrize("clients_counters", [(10, 11, 11), (10, 10, 11), (2**40, 2**40, 2**40)])
def test_counters_are_rounded_to_the_nearest_not_down(
    clients_counters: tuple[int, int, int],
) -> None:
    def client(message: Message) -> list[Message]:
        model = trained(MODEL, (message.metadata.dst_node_id,))
        counter = clients_counters[message.metadata.dst_node_id - 1]
        model["norm.num_batches_tracked"] = np.array(counter)
        return [Message(train_content(model), reply_to=message)]

    strategy = FedPW(adapt_weights=False)
    grid = ClientsGrid(dict.fromkeys(NODES, client))
    arrays, _ = train_round(strategy, grid, array_record(MODEL), 1)
    expected = round(sum(clients_counters) / 3)
    assert arrays["norm.num_batches_tracked"].numpy() == expected


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floating_dtype_is_kept(dtype: str) -> None:
    model = {"w": np.linspace(-1, 1, 40).astype(dtype).reshape(8, 5), "b": np.zeros(5, dtype)}
    arrays = run(model)
    assert {array.dtype for array in arrays.values()} == {dtype}
    assert all(np.isfinite(array).all() for array in ndarrays(arrays).values())
    assert not np.array_equal(arrays["w"].numpy(), model["w"])


def test_float64_is_computed_in_double_precision() -> None:
    rng = np.random.default_rng(3)
    start = {"w": 1.0 + rng.standard_normal(50) * 1e-3}
    models = {node: {"w": start["w"] + rng.standard_normal(50) * 1e-9} for node in NODES}

    def client(message: Message) -> list[Message]:
        return [Message(train_content(models[message.metadata.dst_node_id]), reply_to=message)]

    strategy = FedPW(adapt_weights=False, adjust_parameters=False)
    grid = ClientsGrid(dict.fromkeys(NODES, client))
    arrays, _ = train_round(strategy, grid, array_record(start), 1)
    mean = np.mean([model["w"] for model in models.values()], axis=0)
    np.testing.assert_allclose(arrays["w"].numpy(), mean, rtol=0, atol=1e-15)


def test_zero_dimensional_floats_stay_so() -> None:
    model = {"scale": np.array(2.0, dtype=np.float32), "w": np.ones(6, dtype=np.float32)}
    arrays = run(model)
    assert arrays["scale"].shape == ()
    assert arrays["scale"].numpy() != 2.0


def test_bool_and_small_integer_arrays_survive() -> None:
    model = {
        "w": np.ones((4, 4), dtype=np.float32),
        "mask": np.array([True, False, True]),
        "kind": np.array([1, 2, 3], dtype=np.uint8),
        "step": np.array([5], dtype=np.int32),
    }

    def client(message: Message) -> list[Message]:
        moved = {**model, "w": trained(model, (message.metadata.dst_node_id,))["w"]}
        return [Message(train_content(moved), reply_to=message)]

    strategy = FedPW()
    grid = ClientsGrid(dict.fromkeys(NODES, client))
    arrays, metrics = train_round(strategy, grid, array_record(model), 1)
    assert metrics["fedpw-quarantined"] == 0
    for name in ("mask", "kind", "step"):
        np.testing.assert_array_equal(arrays[name].numpy(), model[name])
        assert arrays[name].dtype == str(model[name].dtype)


def test_empty_arrays_survive() -> None:
    model = {"w": np.ones((3, 4), dtype=np.float32), "none": np.zeros((0, 4), dtype=np.float32)}
    arrays = run(model)
    assert arrays["none"].shape == (0, 4)
    assert arrays["none"].dtype == "float32"


def test_key_order_is_the_models_whatever_the_clients_order() -> None:
    def client(message: Message) -> list[Message]:
        model = trained(MODEL, (message.metadata.dst_node_id,))
        names = sorted(model, reverse=message.metadata.dst_node_id % 2 == 0)
        return [Message(train_content({name: model[name] for name in names}), reply_to=message)]

    grid = ClientsGrid(dict.fromkeys(NODES, client))
    arrays, metrics = train_round(FedPW(), grid, array_record(MODEL), 1)
    assert list(arrays) == list(MODEL)
    assert metrics["fedpw-quarantined"] == 0


def test_column_major_arrays_give_the_same_model() -> None:
    def client(message: Message) -> list[Message]:
        reply = train_reply(message)
        fortran = {
            name: Array(np.array(array.numpy(), order="F"))
            for name, array in reply.content["arrays"].items()
        }
        assert b"'fortran_order': True" in fortran["body.weight"].data
        reply.content["arrays"] = ArrayRecord(fortran)
        return [reply]

    expected, arrays = array_record(MODEL), array_record(MODEL)
    columns, rows = FedPW(), FedPW()
    for server_round in (1, 2, 3):
        column_major = ClientsGrid(dict.fromkeys(NODES, client))
        row_major = ClientsGrid(dict.fromkeys(NODES, good_client))
        arrays, _ = train_round(columns, column_major, arrays, server_round)
        expected, _ = train_round(rows, row_major, expected, server_round)
        assert payloads(arrays) == payloads(expected)


def test_neither_the_sent_model_nor_the_replies_are_written_to() -> None:
    strategy, start = FedPW(), array_record(MODEL)
    grid = ClientsGrid(dict.fromkeys(NODES, good_client))
    arrays, _ = train_round(strategy, grid, start, 1)
    messages = list(strategy.configure_train(2, arrays, ConfigRecord(), grid))
    replies = list(grid.send_and_receive(messages))
    before = [payloads(record) for record in [arrays, *(r.content["arrays"] for r in replies)]]
    strategy.aggregate_train(2, replies)
    after = [payloads(record) for record in [arrays, *(r.content["arrays"] for r in replies)]]
    assert after == before
    assert payloads(start) == payloads(array_record(MODEL))


def test_half_precision_model_near_its_largest_value_stays_finite() -> None:
    start = {"w": np.full(20, 40_000, dtype=np.float16)}

    def client(message: Message) -> list[Message]:
        reached = np.full(20, 60_000, dtype=np.float16)
        reached[:6] = 58_000
        return [Message(train_content({"w": reached}), reply_to=message)]

    strategy, arrays = FedPW(), array_record(start)
    grid = ClientsGrid(dict.fromkeys(NODES, client))
    train_round(strategy, grid, arrays, 1)
    arrays, _ = train_round(strategy, grid, array_record(start), 2)
    assert np.isfinite(arrays["w"].numpy()).all()


def test_clients_that_do_not_move_leave_the_model_as_it_is() -> None:
    def client(message: Message) -> list[Message]:
        return [Message(train_content(MODEL), reply_to=message)]

    strategy, arrays = FedPW(), array_record(MODEL)
    grid = ClientsGrid(dict.fromkeys(NODES, client))
    for server_round in (1, 2, 3):
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        assert payloads(arrays) == payloads(array_record(MODEL))
        assert metrics["fedpw-weight"] == pytest.approx([1 / 3] * 3)
