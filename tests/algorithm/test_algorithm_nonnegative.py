"""A variance stays one: no entry becomes negative where nobody has a negative one (section 4)."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedpw_flwr.algorithm import (
    ClientResult,
    Consensus,
    FedPWSettings,
    SentAdjustment,
    ServerStep,
    WeightingState,
    server_step,
)
from fedpw_flwr.algorithm.adjustment import consensus_score_, keep_nonnegative_
from fedpw_flwr.algorithm.client_step import AdjustedTensors, adjust_tensor, subtract_update
from fedpw_flwr.algorithm.tensors import is_nonnegative
from fedpw_flwr.engines.blocks import block_reader
from fedpw_flwr.engines.cpu import CpuEngine
from fedpw_flwr.wire.packing import PackedUpdate, pack_update

SECOND = WeightingState(rounds=1)
ENTRIES = 40

# float64 takes the step tensor by tensor, float32 the one in blocks; the name says nothing.
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])


def falling(
    dtype: torch.dtype, lowest: float = 0.02
) -> tuple[dict[str, Tensor], list[ClientResult]]:
    """Three clients whose values fall from 1 to nearly `lowest`, each in its own way."""
    generator = torch.Generator().manual_seed(4)
    model = {"x": torch.ones(ENTRIES, dtype=dtype)}
    trained = [lowest + 0.3 * torch.rand(ENTRIES, generator=generator) ** 4 for _ in range(3)]
    results = [
        ClientResult(client, {"x": values.to(dtype)}, loss=1.0 + client)
        for client, values in enumerate(trained)
    ]
    return model, results


def step(
    model: dict[str, Tensor], results: list[ClientResult], settings: FedPWSettings
) -> ServerStep:
    return server_step(model, results, SECOND, settings, engine=CpuEngine)


@DTYPES
def test_an_amplified_step_stops_where_it_would_go_below_zero(dtype: torch.dtype) -> None:
    model, results = falling(dtype)
    guarded = step(model, results, FedPWSettings())
    assert guarded.amplification["x"] > 1.0
    assert is_nonnegative(guarded.model["x"])
    # Without the guard the same round goes below.
    low = [ClientResult(r.client, {"x": r.tensors["x"] - 0.5}, loss=r.loss) for r in results]
    shifted = step({"x": model["x"] - 0.5}, low, FedPWSettings()).model["x"] + 0.5
    went_below = shifted < 0
    assert went_below.any()
    # Elsewhere the step is the same; there it is that without amplification.
    tolerance = 2e-3 if dtype == torch.float16 else 1e-6
    torch.testing.assert_close(
        guarded.model["x"][~went_below], shifted[~went_below], atol=tolerance, rtol=0
    )
    factor = guarded.amplification["x"]
    plain = 1.0 - (1.0 - shifted[went_below].double()) / factor
    torch.testing.assert_close(
        guarded.model["x"][went_below].double(), plain, atol=tolerance, rtol=0
    )


@DTYPES
def test_one_client_with_a_negative_entry_shows_that_they_are_allowed(dtype: torch.dtype) -> None:
    model, results = falling(dtype)
    values = results[1].tensors["x"].clone()
    values[7] = -0.001
    results[1] = ClientResult(1, {"x": values}, loss=2.0)
    assert not is_nonnegative(step(model, results, FedPWSettings()).model["x"])


def test_counted_clients_are_looked_at_only_where_an_entry_fell_below() -> None:
    asked: list[int] = []

    def trained() -> Iterator[Tensor]:
        asked.append(1)
        yield torch.ones(3)

    for moved, start in (([1.0, 2, 3], [1.0, 1, 1]), ([-1.0, 2, 3], [1.0, -1, 1])):
        tensor = torch.tensor(moved)
        keep_nonnegative_(tensor, torch.tensor(start), trained())
        assert tensor.tolist() == moved
    assert asked == []


def test_rounding_alone_does_not_take_an_entry_below_zero() -> None:
    moved = torch.tensor([-1e-9, 0.5])
    keep_nonnegative_(moved, torch.tensor([0.7, 0.5]), [torch.tensor([0.0, 0.5])])
    assert moved.tolist() == [0.0, 0.5]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.float32, torch.float64]))
def test_no_round_of_nonnegative_models_gives_a_negative_entry(
    seed: int, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(seed)
    entries, clients = int(rng.integers(1, 80)), int(rng.integers(1, 6))

    def values() -> Tensor:
        drawn = rng.random(entries) ** rng.integers(1, 12) * 10.0 ** rng.integers(-6, 3)
        return torch.from_numpy(drawn * (rng.random(entries) > 0.2)).to(dtype)

    model = {"x": values()}
    for sent in (None, sent_to(range(clients), entries, rng)):
        results = [
            ClientResult(client, {"x": values()}, loss=float(rng.random()))
            for client in range(clients)
        ]
        moved = server_step(model, results, SECOND, FedPWSettings(), engine=CpuEngine, sent=sent)
        after = moved.model["x"]
        assert is_nonnegative(after)


def sent_to(clients: range, entries: int, rng: np.random.Generator) -> SentAdjustment:
    members = torch.from_numpy(rng.random(entries) < 0.5)
    return SentAdjustment(
        dict.fromkeys(clients, 0.3), Consensus(1, {"x": members}, {"x": 1.0 + float(rng.random())})
    )


def test_a_client_does_not_rescale_what_would_become_negative() -> None:
    start = torch.tensor([1.0, 1.0, 1.0, 1.0])
    trained = torch.tensor([0.1, 0.4, 0.9, 1.2])
    members = torch.tensor([True, True, True, True])
    update, _ = adjust_tensor(start, trained, 0.0, members, 1.5)
    assert update.tolist() == pytest.approx([0.9, 0.9, 0.15, -0.3])
    free, _ = adjust_tensor(start, trained, 0.0, members, 1.5, keep_sign=False)
    assert free.tolist() == pytest.approx([1.35, 0.9, 0.15, -0.3])


def test_a_client_with_a_negative_entry_rescales_all() -> None:
    start, trained = torch.tensor([1.0, 1.0]), torch.tensor([0.1, -0.2])
    update, _ = adjust_tensor(start, trained, 0.0, torch.tensor([True, True]), 1.5)
    assert update.tolist() == pytest.approx([1.35, 1.8])


def test_the_server_adjusts_in_blocks_as_the_client_does() -> None:
    rng = np.random.default_rng(6)
    model = {"x": torch.from_numpy(rng.random(3000).astype(np.float32))}
    trained = {"x": torch.from_numpy(rng.random(3000).astype(np.float32) ** 4)}
    members = torch.from_numpy(rng.random(3000) < 0.5)
    consensus = Consensus(1, {"x": members}, {"x": 1.8})
    on_client, _ = adjust_tensor(model["x"], trained["x"], 0.3, members, 1.8)
    sent = subtract_update(model["x"], on_client)
    assert is_nonnegative(sent)

    start = model["x"].numpy()
    adjusted = AdjustedTensors(model, trained, 0.3, consensus)
    reader = block_reader(adjusted, "x", start)
    assert reader is not None
    room = np.empty_like(start)
    np.testing.assert_array_equal(reader.read(0, 3000, room), sent.numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_packed_values_are_rounded_so_that_none_becomes_negative(seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    start = torch.from_numpy(rng.random(200) * 10.0 ** rng.integers(-8, 4))
    trained = start * torch.from_numpy(rng.random(200) ** 6 * 1e-4)
    update = start - trained
    restored = PackedUpdate(pack_update(update, dtype, most=start), 200, dtype).unpack()
    assert is_nonnegative(start - restored.double())
    # By one step of the type at most.
    step_of = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}[dtype]
    largest = float(update.max())
    floor = largest * 2.0**-24 if dtype == "float16" else 0.0
    assert ((restored.double() - update).abs() <= update * step_of + floor).all()


def test_scores_that_differ_in_sixteen_bits_stay_apart() -> None:
    total = torch.tensor([1.0, 1.0 + 2.0**-15, 1.0 + 2.0**-18], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        score = consensus_score_(total.sqrt().to(dtype), torch.ones(3, dtype=dtype))
        assert score.tolist() == [1.0, 1.0 + 2.0**-15, 1.0]
