"""Packed and adjusted replies may arrive in any state: the run goes on with a sound model.

Either a reply is set aside with a reason, and the round is the one without that client to the last
bit, or what it says is finite and within what a client may choose.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.adjusting_clients import following, silent
from support.federation import assert_sound, assert_sound_metrics, memory
from support.grid import ClientsGrid, ask
from support.records import NDArrays, array_record, clients_of, ndarrays, payloads, train_content
from support.tampered_replies import TAMPERED, Fate, Honest

from fedpw_flwr import FedPW
from fedpw_flwr.strategy.options import Adjustment
from fedpw_flwr.wire.packing import UPLOAD_DTYPES, UploadDtype

MODEL: NDArrays = {
    "conv.weight": np.linspace(-1.0, 1.0, 96, dtype=np.float32).reshape(6, 4, 4),
    "twin.weight": np.linspace(1.0, -1.0, 96, dtype=np.float32).reshape(6, 4, 4),
    "other.weight": np.linspace(-0.5, 0.5, 94, dtype=np.float32),
    "head.bias": np.linspace(0.0, 0.3, 3, dtype=np.float32),
    "norm.running_mean": np.linspace(0.5, 0.8, 70, dtype=np.float32),
    "norm.running_var": np.linspace(0.8, 0.5, 70, dtype=np.float32),
    "norm.num_batches_tracked": np.array(10, dtype=np.int64),
}
"""Twins of one size, a tensor whose mask takes as many bytes, one too small to pack, buffers."""

HONEST_NODES = [21, 22, 23]
LIAR = 24
DTYPES: list[UploadDtype] = list(UPLOAD_DTYPES)

honest_client = following()


def a_strategy(dtype: UploadDtype) -> FedPW:
    return FedPW(
        fraction_evaluate=0.0,
        avg_drop_rate=0.5,
        adjustment="client",
        upload="packed",
        upload_dtype=dtype,
        device="cpu",
    )


def tampered(message: Message, kind: str, seed: int, dtype: str) -> tuple[Message, Message, Fate]:
    """A client's honest reply, what arrives instead of it, and what may become of that."""
    [sent] = honest_client(message)
    honest = Honest(
        content=sent.content,
        global_model=ndarrays(message.content.array_records["arrays"]),
        dtype=dtype,
        chance=random.Random(seed),
    )
    content, fate = TAMPERED[kind][0](honest) or (sent.content, Fate.UNCHANGED)
    return sent, Message(content, reply_to=message), fate


def aggregated(
    strategy: FedPW, server_round: int, replies: Sequence[Message]
) -> tuple[ArrayRecord, MetricRecord]:
    arrays, metrics = strategy.aggregate_train(server_round, replies)
    assert arrays is not None
    assert metrics is not None
    return arrays, metrics


@dataclass
class Federation:
    """A strategy, three honest clients and one whose replies are tampered with."""

    log: pytest.LogCaptureFixture
    dtype: UploadDtype
    strategy: FedPW
    arrays: ArrayRecord = field(default_factory=lambda: array_record(MODEL))
    round: int = 0

    def play(self, kind: str, seed: int) -> bool:
        """Play a round; return whether the liar's reply, which arrives changed, was believed."""
        self.round += 1
        grid = ClientsGrid({**dict.fromkeys(HONEST_NODES, honest_client), LIAR: silent})
        replies = ask(self.strategy, grid, self.arrays, self.round)
        [message] = [sent for sent in grid.sent if sent.metadata.dst_node_id == LIAR]
        sent, arrives, fate = tampered(message, kind, seed, self.dtype)
        without, as_sent = copy.deepcopy(self.strategy), copy.deepcopy(self.strategy)

        self.log.clear()
        arrays, metrics = aggregated(self.strategy, self.round, [*replies, arrives])
        assert_sound(arrays, MODEL)
        assert_sound_metrics(metrics)
        believed = LIAR in clients_of(metrics)
        if believed:
            assert fate is not Fate.REFUSED, f"{kind}, seed {seed}: believed in round {self.round}"
            assert metrics["fedpw-quarantined"] == 0
            if fate is Fate.UNCHANGED:
                expected, expected_metrics = aggregated(as_sent, self.round, [*replies, sent])
                assert payloads(arrays) == payloads(expected)
                assert metrics == expected_metrics
                assert memory(self.strategy) == memory(as_sent)
        else:
            assert kind != "nothing"
            assert metrics["fedpw-quarantined"] == 1
            [reason] = [text for text in self.log.messages if "quarantined: " in text]
            said = TAMPERED[kind][1] or ".{11}"
            assert re.search(rf"round {self.round}, node {LIAR} quarantined: .*({said})", reason)
            expected, _ = aggregated(without, self.round, replies)
            assert payloads(arrays) == payloads(expected)
            assert memory(self.strategy) == memory(without)
        self.arrays = arrays
        return believed


_TWO_ROUNDS: dict[str, Federation] = {}


def after_two_rounds(dtype: UploadDtype, log: pytest.LogCaptureFixture) -> Federation:
    """A federation that masked once: from here on there is a consensus, too."""
    if dtype not in _TWO_ROUNDS:
        federation = Federation(log, dtype, a_strategy(dtype))
        assert federation.play("nothing", 0)
        assert federation.play("nothing", 0)
        assert federation.strategy.method.adjustment_state.consensus is not None
        _TWO_ROUNDS[dtype] = federation
    known = _TWO_ROUNDS[dtype]
    return Federation(log, dtype, copy.deepcopy(known.strategy), known.arrays, known.round)


FUZZ = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
SEEDS = st.integers(0, 2**32)


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", TAMPERED)
def test_tampered_reply_is_set_aside_or_harmless(
    kind: str, seed: int, flower_log: pytest.LogCaptureFixture
) -> None:
    dtype = DTYPES[(list(TAMPERED).index(kind) + seed) % len(DTYPES)]
    after_two_rounds(dtype, flower_log).play(kind, seed)


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@FUZZ
@given(
    dtype=st.sampled_from(DTYPES),
    rounds=st.lists(st.tuples(st.sampled_from(sorted(TAMPERED)), SEEDS), min_size=1, max_size=4),
)
def test_no_history_of_tampered_replies_ends_a_run_or_reaches_the_others(
    flower_log: pytest.LogCaptureFixture, dtype: UploadDtype, rounds: list[tuple[str, int]]
) -> None:
    federation = Federation(flower_log, dtype, a_strategy(dtype))
    for kind, seed in rounds:
        federation.play(kind, seed)


@pytest.mark.parametrize("adjustment", ["server", "client"])
def test_a_client_that_sends_the_largest_values_let_through_does_not_end_the_run(
    adjustment: Adjustment,
) -> None:
    # Replies within the limit, amplified, may add up to a model beyond it.
    def liar(message: Message) -> list[Message]:
        model = ndarrays(message.content.array_records["arrays"])
        turned = np.where(model["conv.weight"] > 0, -1.0, 1.0) * 0.99e16 / np.sqrt(96)
        model["conv.weight"] = turned.astype(np.float32)
        return [Message(train_content(model, loss=1.0), reply_to=message)]

    grid = ClientsGrid({**dict.fromkeys(HONEST_NODES, honest_client), LIAR: liar})
    strategy = FedPW(fraction_evaluate=0.0, adjustment=adjustment, device="cpu")
    result = strategy.start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=12)
    assert_sound(result.arrays, MODEL)
