"""Packed uploads: the same rounds with fewer bytes, and payloads that lie cost only themselves."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from adjusting_clients import (
    Round,
    Train,
    altered,
    assert_quarantined,
    following,
    ignoring,
    memory,
    model_of,
    play,
    play_round,
    report_of,
    round_of,
    with_report,
)
from federation import MODEL, train_reply, trained
from flwr.app import Array, ArrayRecord, Message, RecordDict
from support.grid import Client
from support.records import NDArrays, array_record, payloads, train_content

from fedpw_flwr import FedPW
from fedpw_flwr.algorithm import WeightingState
from fedpw_flwr.wire.packing import UploadDtype, pack_update, packed_size

NODES = [11, 12, 13, 14]
ROUNDS = 3

SMALL: NDArrays = {
    **MODEL,
    "body.weight": np.linspace(-1.0, 1.0, 96, dtype=np.float32).reshape(12, 8),
}
"""Only the weight is worth packing."""

_rng = np.random.default_rng(7)
LARGE: NDArrays = {
    "conv.weight": (0.2 * _rng.standard_normal((16, 8, 3, 3))).astype(np.float32),
    "bn.weight": np.ones(32, dtype=np.float32),
    "bn.running_mean": (0.2 * _rng.standard_normal(32)).astype(np.float32),
    "bn.num_batches_tracked": np.array(10),
    "fc.weight": (0.2 * _rng.standard_normal((100, 100))).astype(np.float32),
    "fc.bias": np.zeros(3, dtype=np.float32),
    "scale": np.array(1.5, dtype=np.float32),
}
LARGE_WITHOUT_SCALE = {name: array for name, array in LARGE.items() if name != "scale"}


def run(
    model: NDArrays = SMALL,
    train: Train = train_reply,
    clients: Mapping[int, Client] | None = None,
    rounds: int = ROUNDS,
    **settings: Any,
) -> tuple[list[Round], FedPW]:
    strategy = FedPW(adjustment="client", device="cpu", **settings)
    everyone = clients or dict.fromkeys(NODES, following(train))
    return play(strategy, [everyone] * rounds, array_record(model)), strategy


@functools.cache
def large_run(upload: str, dtype: str = "float32") -> tuple[list[Round], FedPW]:
    """Three rounds of the large model, played once for all tests that look at them."""
    return run(LARGE_WITHOUT_SCALE, upload=upload, upload_dtype=dtype)


def outcome(rounds: list[Round], strategy: FedPW) -> tuple[object, WeightingState, object]:
    return (
        [(payloads(each.arrays), dict(each.metrics)) for each in rounds],
        strategy.state,
        memory(strategy.method.adjustment_state),
    )


def is_packed(reply: RecordDict) -> bool:
    return bool(report_of(reply)["packed"])


@pytest.mark.parametrize("size", ["small", "large"])
def test_packed_float32_gives_the_bytes_of_dense(size: str) -> None:
    dense = run() if size == "small" else large_run("dense")
    packed = run(upload="packed") if size == "small" else large_run("packed")
    assert outcome(*packed) == outcome(*dense)
    assert all(is_packed(reply) for each in packed[0][1:] for reply in each.replies.values())


def test_single_numbers_travel_as_they_are_beside_packed_arrays() -> None:
    rounds, _ = run(LARGE, upload="packed")
    for number, each in enumerate(rounds, start=1):
        assert each.metrics["fedpw-quarantined"] == 0
        for node in NODES:
            local = trained(model_of(each.messages[node]), (node, number))
            assert each.reply_arrays(node)["scale"].shape == ()
            assert each.reply_arrays(node)["scale"] == local["scale"]


def test_packed_float32_gives_the_bytes_of_dense_for_half_precision_models() -> None:
    # Kept float32 values pay off against float16 arrays where a client drops most of them.
    model = {
        name: array.astype(np.float16) if array.dtype.kind == "f" else array
        for name, array in LARGE_WITHOUT_SCALE.items()
    }
    dense = run(model, avg_drop_rate=0.7)
    packed = run(model, avg_drop_rate=0.7, upload="packed")
    assert outcome(*packed) == outcome(*dense)
    assert any(is_packed(reply) for reply in packed[0][-1].replies.values())


def test_packed_float32_gives_the_bytes_of_dense_where_little_was_trained() -> None:
    # An embedding of which a round touches few rows is worth packing before anything is masked. Its
    # first entry is one whose update float32 rounds (see test_strategy_client_placement_mixed).
    start = np.full(64, 1.0, dtype=np.float32)
    start[0] = 6.53125 + 2.0**-19

    def train(message: Message) -> Message:
        model = model_of(message)
        model["embedding.weight"] = model["embedding.weight"].copy()
        model["embedding.weight"][0] = 38.53125 + 2.0**-18
        return Message(train_content(model, 0.1 * message.metadata.dst_node_id), reply_to=message)

    model = {"embedding.weight": start}
    dense = run(model, train, rounds=1)
    packed = run(model, train, rounds=1, upload="packed")
    assert outcome(*packed) == outcome(*dense)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_frozen_tensors_pack_into_a_mask_of_zeros(dtype: str) -> None:
    def train(message: Message) -> Message:
        model = {**train_model(message), "fc.weight": model_of(message)["fc.weight"]}
        return Message(train_content(model, 1.0), reply_to=message)

    def train_model(message: Message) -> NDArrays:
        seed = (message.metadata.dst_node_id, round_of(message))
        return trained(model_of(message), seed)

    rounds, _ = run(LARGE_WITHOUT_SCALE, train, upload="packed", upload_dtype=dtype)
    for each in rounds:
        assert each.metrics["fedpw-client-id"] == NODES
        np.testing.assert_array_equal(each.model["fc.weight"], LARGE["fc.weight"])
    for each in rounds[1:]:
        assert each.reply_arrays(11)["fc.weight"].size == packed_size(10_000, 0, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_client_that_is_to_drop_everything_sends_masks_of_zeros(dtype: str) -> None:
    def train(message: Message) -> Message:
        return train_reply(message, loss=0.001 if message.metadata.dst_node_id == 14 else 1.0)

    rounds, _ = run(
        LARGE_WITHOUT_SCALE, train, upload="packed", upload_dtype=dtype, max_loss_ratio=None
    )
    for each in rounds[1:]:
        assert each.rates[14] == 1.0
        assert each.metrics["fedpw-client-id"] == NODES
        sent = model_of(each.messages[14])
        assert each.reply_arrays(14)["fc.weight"].size == packed_size(10_000, 0, dtype)
        assert each.reply_arrays(14)["bn.num_batches_tracked"] == sent["bn.num_batches_tracked"] + 1


def test_packed_and_dense_and_unadjusted_replies_may_mix() -> None:
    expected = outcome(*run(upload="packed"))
    mixed: dict[int, Client] = {
        11: following(),
        12: ignoring(),
        13: following(),
        14: ignoring(),
    }
    assert outcome(*run(clients=mixed, upload="packed")) == expected


def test_a_client_may_answer_dense_where_packed_was_asked() -> None:
    def dense(content: RecordDict) -> None:
        """Unpack again, as a client does for which packing is not worth it."""
        content["arrays"] = wanted[int(content["metrics"]["node"])]  # type: ignore[arg-type]
        with_report(packed=[])(content)

    def train(message: Message) -> Message:
        return train_reply(message, node=message.metadata.dst_node_id)

    client = following(train)
    plain, strategy = FedPW(adjustment="client"), FedPW(adjustment="client", upload="packed")
    arrays = play(plain, [dict.fromkeys(NODES, client)] * 2, array_record(SMALL))[-1].arrays
    play(strategy, [dict.fromkeys(NODES, client)] * 2, array_record(SMALL))
    expected = play_round(plain, dict.fromkeys(NODES, client), arrays, 3)
    wanted = {node: content.array_records["arrays"] for node, content in expected.replies.items()}
    each = play_round(strategy, dict.fromkeys(NODES, altered(client, dense)), arrays, 3)
    assert each.metrics["fedpw-quarantined"] == 0
    assert payloads(each.arrays) == payloads(expected.arrays)


def bytes_sent(reply: RecordDict) -> int:
    return sum(len(array.data) for array in reply.array_records["arrays"].values())


@pytest.mark.parametrize(
    ("dtype", "bytes_a_parameter"), [("float32", 2.925), ("float16", 1.525), ("bfloat16", 1.525)]
)
def test_packed_reply_takes_the_bytes_it_promises(dtype: str, bytes_a_parameter: float) -> None:
    # With equal losses everybody drops 30 %: 1/8 + 0.7 · 4 bytes an entry, or 1/8 + 0.7 · 2. The
    # two headers of an array, NumPy's and the packed one's, take less than 200 bytes.
    model = {"fc.weight": LARGE["fc.weight"]}
    rounds, _ = run(
        model,
        lambda message: train_reply(message, loss=1.0),
        rounds=2,
        upload="packed",
        upload_dtype=dtype,
    )
    for reply in rounds[-1].replies.values():
        assert bytes_sent(reply) <= bytes_a_parameter * 10_000 + 200


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_packed_reply_is_never_larger_than_a_dense_one(dtype: str) -> None:
    # An array that would not shrink travels as it is; a byte mask costs a header of its own size.
    dense, packed = large_run("dense")[0], large_run("packed", dtype)[0]
    for one, other in zip(dense, packed, strict=True):
        for node in NODES:
            assert bytes_sent(other.replies[node]) <= bytes_sent(one.replies[node])


PRECISION = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of rounding to the type, for values it holds with full precision."""


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("server_round", [1, 2, 3])
def test_round_with_halved_values_differs_by_their_rounding_and_no_more(
    dtype: UploadDtype, server_round: int
) -> None:
    # Equal weights and the same start: the next model differs by the rounding of the kept values.
    # Measured over the three rounds: at most 2.8e-4 (float16) and 2.3e-3 (bfloat16) of the entry's
    # largest |Δ̃_k|; the bounds are 4.9e-4 and 3.9e-3.
    settings: dict[str, Any] = {"adjustment": "client", "adapt_weights": False, "device": "cpu"}
    dense = FedPW(**settings)
    clients = dict.fromkeys(NODES, following())
    arrays = array_record(LARGE_WITHOUT_SCALE)
    if server_round > 1:
        arrays = play(dense, [clients] * (server_round - 1), arrays)[-1].arrays
    packed = FedPW(**settings, upload="packed", upload_dtype=dtype)
    # The same memory, which a packed run of its own would only have to within rounding.
    packed.state = dense.state
    packed.method.adjustment_state = dense.method.adjustment_state
    one = play_round(dense, clients, arrays, server_round)
    other = play_round(packed, clients, arrays, server_round)
    assert other.requests[11].upload_dtype == dtype
    assert all(is_packed(reply) for reply in other.replies.values())
    start = one.messages[11].content.array_records["arrays"]
    for name, array in one.model.items():
        if array.dtype.kind == "i":
            assert other.model[name] == array
            continue
        before = start[name].numpy()
        sent = np.max([np.abs(before - one.reply_arrays(node)[name]) for node in NODES], axis=0)
        # float32's own rounding of w − Δ̃ and w − g comes on top.
        rounding = 4 * np.finfo(np.float32).eps * np.maximum(np.abs(before), 1.0)
        assert (np.abs(other.model[name] - array) <= PRECISION[dtype] * sent + rounding).all()


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_run_with_halved_values_stays_close_to_the_dense_one(dtype: str, bound: float) -> None:
    # Three rounds with adaptive weights, each run with its own consensus and factors. Measured:
    # 2.1e-4 (float16) and 4.1e-3 (bfloat16) of the way that the model went.
    dense, packed = large_run("dense")[0], large_run("packed", dtype)[0]
    one, other = dense[-1].model, packed[-1].model
    moved = np.linalg.norm(one["fc.weight"] - LARGE["fc.weight"])
    assert np.linalg.norm(other["fc.weight"] - one["fc.weight"]) <= bound * moved
    assert packed[-1].metrics["fedpw-weight"] == pytest.approx(
        dense[-1].metrics["fedpw-weight"], abs=bound
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_halved_values_of_any_size_keep_their_precision(dtype: str, scale: float) -> None:
    # float16 alone ends at 65504 and has no digits left below 6e-8. The mean of four independent
    # updates is half as long as each of them, so their rounding weighs double.
    def train(message: Message) -> Message:
        model = trained(model_of(message), (message.metadata.dst_node_id,), scale)
        return Message(train_content(model, 1.0), reply_to=message)

    model = {"fc.weight": np.zeros((20, 20), dtype=np.float32)}
    dense, _ = run(model, train, rounds=2)
    packed, _ = run(model, train, rounds=2, upload="packed", upload_dtype=dtype)
    one, other = dense[-1].model["fc.weight"], packed[-1].model["fc.weight"]
    assert np.linalg.norm(other - one) <= 2 * PRECISION[dtype] * np.linalg.norm(one)


def test_request_names_upload_and_type() -> None:
    rounds, _ = run(rounds=3, upload="packed", upload_dtype="bfloat16")
    for each in rounds:
        for request in each.requests.values():
            assert (request.upload, request.upload_dtype) == ("packed", "bfloat16")
    rounds, _ = run(rounds=1)
    assert rounds[0].requests[11].upload == "dense"


# --- Payloads that lie ---------------------------------------------------------------------------

WEIGHT, ENTRIES, PLACE = "body.weight", 96, 0
LIAR = 13


def payload(edit: Callable[[np.ndarray], np.ndarray]) -> Callable[[RecordDict], None]:
    """Put something else in the place of the packed weight."""

    def change(content: RecordDict) -> None:
        arrays = dict(content.array_records["arrays"])
        arrays[WEIGHT] = Array(edit(arrays[WEIGHT].numpy().copy()))
        content["arrays"] = ArrayRecord(arrays)

    return change


def honest_packing_of(
    kept: int,
    entries: int = ENTRIES,
    dtype: str = "float32",
    place: int = PLACE,
    value: float = 0.1,
) -> Callable[[RecordDict], None]:
    """Another update, packed as it should be."""
    update = torch.zeros(entries)
    update[:kept] = value
    return payload(lambda _: pack_update(update, dtype, place))


LIES: dict[str, tuple[Callable[[RecordDict], None], str]] = {
    "packed array that is not listed": (with_report(packed=[]), "'body.weight'"),
    "dense array that is listed": (with_report(packed=[0, 1]), "'body.bias'.*row of bytes"),
    "packed counter": (with_report(packed=[0, 3]), "num_batches_tracked.*not floating"),
    "mask that keeps more than the rate leaves": (
        honest_packing_of(kept=96),
        "'body.weight'.*keeps 96 of 96 entries, the drop rate leaves",
    ),
    "values of another type": (honest_packing_of(10, dtype="float16"), "of type 1, not float32"),
    "another array's update": (honest_packing_of(10, place=1), "'body.weight'"),
    "update of another size": (honest_packing_of(10, entries=95), "'body.weight'"),
    "values that are not finite": (
        honest_packing_of(10, value=math.nan),
        "'body.weight'.*not finite",
    ),
    "values that have diverged": (honest_packing_of(10, value=1e30), "'body.weight'.*diverged"),
    "one flipped bit": (payload(lambda packed: np.append(packed[:-1], packed[-1] ^ 1)), "checksum"),
    "cut payload": (payload(lambda packed: packed[:-1]), "'body.weight'"),
    "payload longer by a byte": (payload(lambda packed: np.append(packed, packed[-1])), "weight"),
    "payload of six bytes": (payload(lambda packed: packed[:6]), "too few"),
    "empty payload": (payload(lambda packed: packed[:0]), "too few"),
    "payload of another dtype": (
        payload(lambda packed: packed.astype(np.int16)),
        "row of bytes, not int16",
    ),
    "payload of two rows": (
        payload(lambda packed: packed[: 2 * (packed.size // 2)].reshape(2, -1)),
        "row of bytes",
    ),
}


def costs_only_itself(
    strategy: FedPW, arrays: ArrayRecord, liar: Client, reason: str, log: pytest.LogCaptureFixture
) -> None:
    clients = {**dict.fromkeys(NODES, following()), LIAR: liar}
    assert_quarantined(strategy, arrays, clients, LIAR, reason, log, server_round=3)


@pytest.fixture(scope="module")
def before_round_3() -> tuple[FedPW, ArrayRecord]:
    rounds, strategy = run(rounds=2, upload="packed")
    return strategy, rounds[-1].arrays


@pytest.mark.parametrize("lie", LIES)
def test_packed_payload_that_lies_costs_only_itself(
    before_round_3: tuple[FedPW, ArrayRecord], lie: str, flower_log: pytest.LogCaptureFixture
) -> None:
    change, reason = LIES[lie]
    costs_only_itself(*before_round_3, altered(following(), change), reason, flower_log)


def test_payload_that_keeps_nothing_is_an_update_of_zeros(
    before_round_3: tuple[FedPW, ArrayRecord],
) -> None:
    # A mask may keep less than the rate leaves: entries of an update can be 0 by themselves.
    def unmoved(content: RecordDict) -> None:
        arrays = dict(content.array_records["arrays"])
        content["arrays"] = ArrayRecord({**arrays, WEIGHT: before_round_3[1][WEIGHT]})
        with_report(packed=[])(content)

    models = []
    for change in (honest_packing_of(kept=0), unmoved):
        clients = {**dict.fromkeys(NODES, following()), LIAR: altered(following(), change)}
        each = play_round(copy.deepcopy(before_round_3[0]), clients, before_round_3[1], 3)
        assert each.metrics["fedpw-client-id"] == NODES
        models.append(payloads(each.arrays))
    assert models[0] == models[1]


@pytest.mark.parametrize("adjustment", ["server", "client"])
def test_packed_reply_that_nobody_asked_for_costs_only_itself(
    before_round_3: tuple[FedPW, ArrayRecord],
    adjustment: str,
    flower_log: pytest.LogCaptureFixture,
) -> None:
    # It answers what a server with packed uploads would have asked in this round.
    packing = copy.deepcopy(before_round_3[0])
    packed = play_round(packing, dict.fromkeys(NODES, following()), before_round_3[1], 3).replies[
        LIAR
    ]
    assert is_packed(packed)

    def liar(message: Message) -> list[Message]:
        return [Message(packed, reply_to=message)]

    strategy = FedPW(adjustment=adjustment, device="cpu")  # type: ignore[arg-type]
    arrays = play(strategy, [dict.fromkeys(NODES, following())] * 2, array_record(SMALL))[-1].arrays
    costs_only_itself(strategy, arrays, liar, "not asked to", flower_log)


def test_packed_arrays_without_a_report_cost_only_themselves(
    before_round_3: tuple[FedPW, ArrayRecord], flower_log: pytest.LogCaptureFixture
) -> None:
    def change(content: RecordDict) -> None:
        del content["fedpw"]

    liar = altered(following(), change)
    costs_only_itself(*before_round_3, liar, "'body.weight' has the shape", flower_log)
