"""A run that goes on from a checkpoint ends with the bits of one that was never interrupted.

Also where its clients come back at other nodes, as after every restart, and some are drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.common import parameters_to_ndarrays
from flwr.server import strategy as legacy_strategies
from flwr.serverapp.strategy import FedAdam, FedAvgM
from support.adjusting_clients import following, model_of, round_of
from support.federation import (
    BASELINES,
    LEGACY,
    MESSAGE,
    MODEL,
    PLACEMENTS,
    Federation,
    both_apis,
    every_method,
    everyone,
    parameters_of,
    proxies_of,
)
from support.grid import Client, ClientsGrid
from support.legacy_federation import run_server, with_server_round
from support.records import array_record, ndarrays, payloads, train_content
from support.small_model import MODEL as SMALL_MODEL
from support.small_model import evaluate_reply, trained

from fedpw_flwr import FedPW
from fedpw_flwr.baselines import AFL, FedHEAL
from fedpw_flwr.checkpoint import CheckpointError, CheckpointStore
from fedpw_flwr.legacy import CheckpointedServer, OrderedClientManager
from fedpw_flwr.rounds.loop import run_rounds
from fedpw_flwr.wire.records import IDENTITY_QUERY, identity_record

ROUNDS = 5
FIRST, LATER = [131, 105, 117, 188, 102, 160], [107, 193, 114, 103, 171, 140]
"""Nodes of six sites, before a restart and after it."""


class Killed(Exception):
    """Stands for a process that is killed: nothing after it is done."""


class FedAdamPW(FedAdam, FedPW):
    pass


class FedAvgMPW(FedAvgM, FedPW):
    pass


def site(number: int) -> Client:
    """A client that says who it is, and trains by noise that follows from that and the round."""

    def train(message: Message) -> Message:
        now = round_of(message)
        model = trained(model_of(message), (number, now))
        loss = 0.4 + 0.3 * number + 0.1 / now
        return Message(train_content(model, loss, 8 + number, number), reply_to=message)

    adjusted = following(train)

    def client(message: Message) -> Iterable[Message]:
        kind = message.metadata.message_type
        if kind == IDENTITY_QUERY:
            return [Message(identity_record(number), reply_to=message)]
        if kind == "train":
            return adjusted(message)
        loss = 0.3 * number + float(model_of(message)["body.bias"].std())
        return [evaluate_reply(message, loss=loss, **{"num-examples": 10})]

    return client


def sites_at(nodes: Sequence[int]) -> dict[int, Client]:
    """Site k at the k-th node, in the order of the nodes, which says nothing about the sites."""
    return dict(sorted((node, site(number)) for number, node in enumerate(nodes)))


def play(
    api: Federation,
    options: dict[str, Any],
    folder: Path,
    nodes: Sequence[int] = FIRST,
    killed_in: int | None = None,
    rounds: int = ROUNDS,
    **checkpoints: Any,
) -> object:
    """Play a run as a user of the API does; return everything that came of it."""

    def at_risk(server_round: int, arrays: Iterable[np.ndarray]) -> float:
        if server_round == killed_in:
            raise Killed
        return sum(float(array.sum()) for array in arrays)

    options = {"fraction_evaluate": 0.0, **options}
    if api is LEGACY:
        return _play_legacy(options, folder, sites_at(nodes), at_risk, rounds, **checkpoints)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"sum": at_risk(server_round, ndarrays(arrays).values())})

    strategy = api.strategy(**options)
    strategy.sampling.asks_identities = True
    result = run_rounds(
        strategy,
        CheckpointStore(folder, every=checkpoints.get("every", 1)),
        ClientsGrid(sites_at(nodes)),
        array_record(MODEL),
        num_rounds=rounds,
        evaluate_fn=evaluate,
        resume=checkpoints.get("resume", False),
    )
    told = (result.train_metrics_clientapp, result.evaluate_metrics_serverapp)
    metrics = [{number: dict(one) for number, one in records.items()} for records in told]
    return payloads(result.arrays), metrics


def _play_legacy(
    options: dict[str, Any],
    folder: Path,
    clients: dict[int, Client],
    at_risk: Callable[..., float],
    rounds: int,
    every: int = 1,
    resume: bool = False,
) -> object:
    manager = OrderedClientManager()
    for proxy in proxies_of(clients, list(MODEL)):
        manager.register(proxy)
    server = CheckpointedServer(
        client_manager=manager,
        strategy=LEGACY.strategy(
            initial_parameters=parameters_of(array_record(MODEL)),
            evaluate_fn=lambda now, arrays, _: (at_risk(now, arrays), {"raw": b"\x01", "now": now}),
            **options,
        ),
        checkpoint_dir=folder,
        checkpoint_every=every,
        resume=resume,
    )
    history, _ = server.fit(rounds, timeout=None)
    return server.parameters.tensors, vars(history)


OPTIMIZERS: list[Federation] = [
    Federation("adam on FedPW", FedAdamPW),
    Federation("momentum on FedPW", lambda **options: FedAvgMPW(server_momentum=0.9, **options)),
]
HALF = {"fraction_train": 0.5}
EVALUATE = {"loss_source": "evaluate", "evaluate_loss_key": "loss", "fraction_evaluate": 1.0}
CASES: list[tuple[Federation, dict[str, Any]]] = [
    *((api, options) for api in (MESSAGE, LEGACY) for options in PLACEMENTS.values()),
    *((api, HALF) for api in (MESSAGE, LEGACY, *BASELINES)),
    *((api, {**HALF, **PLACEMENTS["client"]}) for api in (MESSAGE, LEGACY)),
    *((api, {**EVALUATE, **PLACEMENTS["client"]}) for api in (MESSAGE, LEGACY)),
    *((api, {}) for api in OPTIMIZERS),
]
NAMES = [f"{api.name} {list(options.values())}" for api, options in CASES]


@pytest.mark.parametrize(("api", "options"), CASES, ids=NAMES)
def test_a_killed_run_ends_as_if_it_had_not_been(
    api: Federation, options: dict[str, Any], tmp_path: Path
) -> None:
    random.seed(5)
    expected = play(api, options, tmp_path / "whole", every=ROUNDS)
    # In the first round, and after a checkpoint that is a round old.
    for killed_in in (1, 4):
        folder = tmp_path / f"{killed_in}"
        random.seed(5)
        with pytest.raises(Killed):
            play(api, options, folder, killed_in=killed_in, every=2)
        random.seed(killed_in)
        assert play(api, options, folder, LATER, resume=True, every=2) == expected


@both_apis
def test_resume_begins_where_there_is_no_checkpoint_and_a_finished_run_can_be_made_longer(
    api: Federation, tmp_path: Path
) -> None:
    random.seed(2)
    expected = play(api, {}, tmp_path / "whole")
    random.seed(2)
    play(api, {}, tmp_path / "short", rounds=2, resume=True)
    random.seed(99)
    assert play(api, {}, tmp_path / "short", resume=True) == expected
    assert play(api, {}, tmp_path / "short", resume=True) == expected
    assert CheckpointStore(tmp_path / "short").rounds() == [5, 4, 3]


@both_apis
def test_the_newest_intact_checkpoint_is_gone_on_from(
    api: Federation, tmp_path: Path, flower_log: pytest.LogCaptureFixture
) -> None:
    random.seed(4)
    expected = play(api, {}, tmp_path / "whole")
    random.seed(4)
    play(api, {}, tmp_path / "torn", rounds=3)
    torn = tmp_path / "torn" / "round-000003" / "state.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    assert play(api, {}, tmp_path / "torn", resume=True) == expected
    assert "round-000003 is not intact" in flower_log.text
    assert "Going on after round 2 of 5" in flower_log.text


@both_apis
def test_a_folder_in_use_is_refused_without_resume(api: Federation, tmp_path: Path) -> None:
    play(api, {}, tmp_path, rounds=1)
    with pytest.raises(CheckpointError, match=r"up to round 1: go on with\s+resume=True"):
        play(api, {}, tmp_path, rounds=2)


@both_apis
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"beta": 0.4}, "beta: 0.3 in the checkpoint, 0.4 now"),
        ({"adjustment": "client"}, "adjustment: 'server' in the"),
        (EVALUATE, "loss_source: not in the checkpoint, 'evaluate' now"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    api: Federation, options: dict[str, Any], named: str, tmp_path: Path
) -> None:
    play(api, {}, tmp_path, rounds=1)
    with pytest.raises(CheckpointError, match=named):
        play(api, options, tmp_path, rounds=2, resume=True)


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    play(MESSAGE, {}, tmp_path / "fedpw", rounds=1)
    named = "strategy: 'FedPW' in the checkpoint, 'FedAdamPW' now"
    with pytest.raises(CheckpointError, match=named):
        play(OPTIMIZERS[0], {}, tmp_path / "fedpw", rounds=2, resume=True)
    fedheal = Federation("FedHEAL", FedHEAL)
    play(fedheal, {"tau": 0.2}, tmp_path / "fedheal", rounds=1)
    with pytest.raises(CheckpointError, match="tau"):
        play(fedheal, {"tau": 0.3}, tmp_path / "fedheal", rounds=2, resume=True)


# Through the strategy's own start


def start(folder: Path | None = None, rounds: int = ROUNDS, **options: Any) -> object:
    strategy = FedPW(checkpoint_dir=folder, **options)
    result = strategy.start(ClientsGrid(sites_at(FIRST)), array_record(MODEL), num_rounds=rounds)
    metrics = {number: dict(one) for number, one in result.train_metrics_clientapp.items()}
    return payloads(result.arrays), metrics, result.evaluate_metrics_clientapp


def test_start_goes_on_too_and_a_run_with_checkpoints_is_the_run_without(tmp_path: Path) -> None:
    expected = start()
    assert start(tmp_path / "whole") == expected
    start(tmp_path / "cut", rounds=3)
    assert start(tmp_path / "cut", resume=True) == expected


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    start(tmp_path, rounds=1)
    other = {**SMALL_MODEL, "body.bias": SMALL_MODEL["body.bias"][:3]}
    with pytest.raises(CheckpointError, match=r"model.body.bias: 'array 1, float32 \[4\]' in"):
        FedPW(checkpoint_dir=tmp_path, resume=True).start(
            ClientsGrid(sites_at(FIRST)), array_record(other), num_rounds=2
        )


def test_resume_without_a_folder_is_refused() -> None:
    with pytest.raises(ValueError, match="resume=True needs checkpoint_dir"):
        FedPW(resume=True)


@pytest.mark.parametrize(
    "flowers",
    [
        legacy_strategies.FedAdam,
        partial(legacy_strategies.FedAvgM, server_momentum=0.9, server_learning_rate=0.5),
    ],
)
def test_flowers_legacy_server_optimizers_keep_their_moments(flowers: Any, tmp_path: Path) -> None:
    """They add up replies as they arrive, so that no two runs of theirs have the same bits."""

    def model_after(folder: Path, rounds: int, resume: bool = False) -> list[np.ndarray]:
        initial, on_fit = parameters_of(array_record(MODEL)), with_server_round
        strategy = flowers(initial_parameters=initial, on_fit_config_fn=on_fit)
        proxies = proxies_of(sites_at(FIRST), list(MODEL))
        _, last = run_server(strategy, proxies, rounds, checkpoint_dir=folder, resume=resume)
        return parameters_to_ndarrays(last)

    expected = model_after(tmp_path / "whole", ROUNDS)
    model_after(tmp_path / "cut", 2)
    found = model_after(tmp_path / "cut", ROUNDS, resume=True)
    for array, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-5)


# What is saved


@every_method
def test_a_state_that_was_taken_is_not_changed_by_later_rounds(api: Federation) -> None:
    strategy, clients = api.strategy(**HALF), everyone(range(11, 16))
    arrays = api.train_rounds(strategy, clients, 2)[-1].arrays
    state, tensors = strategy.saved_state()
    before = repr(state), {name: tensor.clone() for name, tensor in tensors.items()}
    api.train_round(strategy, clients, arrays, 3)
    assert repr(state) == before[0]
    assert all(np.array_equal(tensors[name], tensor) for name, tensor in before[1].items())


@every_method
def test_what_is_no_state_is_refused(api: Federation) -> None:
    with pytest.raises(ValueError, match="not a saved state"):
        api.strategy().restore_state({"rounds": 1}, {})


def test_a_baseline_goes_on_from_a_state_that_has_no_dtypes() -> None:
    """As it was saved before all methods shared one driver."""
    strategy = AFL()
    state, tensors = strategy.saved_state()
    del state["dtypes"]
    AFL().restore_state(state, tensors)
    with pytest.raises(ValueError, match="not a saved state of AFL"):
        AFL().restore_state({"dtypes": {}}, {})
