"""Packed uploads: the same rounds with fewer bytes.

Payloads that lie are those of test_strategy_packed_fuzz.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from support.adjusting_clients import Round, Train, following, ignoring, model_of, play, report_of
from support.federation import memory
from support.grid import Client
from support.records import NDArrays, array_record, payloads
from support.small_model import train_reply, trained

from fedpw_flwr import FedPW
from fedpw_flwr.wire.packing import UploadDtype

NODES = [11, 12, 13, 14]
ROUNDS = 3
DTYPES: list[UploadDtype] = ["float32", "float16", "bfloat16"]

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
"""Two arrays are worth packing; the others travel as they are, beside them."""


def run(
    model: NDArrays = LARGE,
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
    return run(upload=upload, upload_dtype=dtype)


def outcome(rounds: list[Round], strategy: FedPW) -> tuple[object, ...]:
    return (
        [(payloads(each.arrays), dict(each.metrics)) for each in rounds],
        memory(strategy),
    )


def is_packed(reply: RecordDict) -> bool:
    return bool(report_of(reply)["packed"])


def test_packed_float32_gives_the_bytes_of_dense() -> None:
    rounds, strategy = large_run("packed")
    assert outcome(rounds, strategy) == outcome(*large_run("dense"))
    assert all(is_packed(reply) for each in rounds[1:] for reply in each.replies.values())
    for number, each in enumerate(rounds, start=1):
        for node in NODES:
            local = trained(model_of(each.messages[node]), (node, number))
            assert each.reply_arrays(node)["scale"].shape == ()
            assert each.reply_arrays(node)["scale"] == local["scale"]


def test_so_it_does_for_models_of_half_precision() -> None:
    # Kept float32 values pay off against float16 arrays where clients drop most of them.
    model = {
        name: array.astype(np.float16) if array.dtype.kind == "f" else array
        for name, array in LARGE.items()
    }
    packed = run(model, avg_drop_rate=0.7, upload="packed")
    assert outcome(*packed) == outcome(*run(model, avg_drop_rate=0.7))
    assert any(is_packed(reply) for reply in packed[0][-1].replies.values())


def test_packed_and_unadjusted_replies_may_mix() -> None:
    mixed: dict[int, Client] = {11: following(), 12: ignoring(), 13: following(), 14: ignoring()}
    assert outcome(*run(clients=mixed, upload="packed")) == outcome(*large_run("packed"))


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
