"""What holds for every baseline: who breaks costs only itself, and no bit depends on chance."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from baselines_federation import (
    BUILDS,
    MODEL,
    TRAINED,
    Local,
    client_of,
    drawn,
    grid_of,
    local,
)
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import Result
from support.grid import ClientsGrid, train_round
from support.records import array_record, ndarrays, payloads, train_content

from fedpw_flwr import FedPW
from fedpw_flwr.baselines import AFL, TERM, EqualFedAvg, FedHEAL, FedMGDAPlus, QFedAvg
from fedpw_flwr.baselines.screened import ScreenedStrategy
from fedpw_flwr.checkpoint import CheckpointError, CheckpointStore
from fedpw_flwr.lab.app.recording import client_metrics
from fedpw_flwr.rounds.faults import MissingLossError
from fedpw_flwr.rounds.loop import run_rounds
from fedpw_flwr.rounds.run_state import Stateful

Build = Callable[..., ScreenedStrategy]
every_strategy = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)

CLIENTS = range(5)


def honest(extra: dict[int, Any] | None = None, arrange: Any = list) -> ClientsGrid:
    clients = {100 + one: client_of(drawn, one) for one in CLIENTS}
    return ClientsGrid({**clients, **(extra or {})}, arrange)


def rounds_of(
    strategy: ScreenedStrategy, grid: ClientsGrid, count: int = 3
) -> tuple[ArrayRecord, list[dict[str, Any]]]:
    arrays, records = array_record(MODEL), []
    for server_round in range(1, count + 1):
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        records.append(dict(metrics))
    return arrays, records


def broken(change: Callable[[dict[str, np.ndarray]], Any], **said: Any) -> Any:
    def answer(message: Message) -> list[Message]:
        model = {name: array.copy() for name, array in ndarrays(message.content["arrays"]).items()}
        changed = change(model) or model
        return [Message(train_content(changed, client_id=9, **said), reply_to=message)]

    return answer


def raises(message: Message) -> list[Message]:
    raise RuntimeError("out of memory")


def not_finite(model: dict[str, np.ndarray]) -> None:
    model["body.weight"][0, 0] = np.nan


def misshapen(model: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**model, "body.bias": np.zeros(3, np.float32)}


def incomplete(model: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in model.items() if name != "norm.running_var"}


BROKEN = {
    "not finite": broken(not_finite),
    "misshapen": broken(misshapen),
    "incomplete": broken(incomplete),
    "loss not finite": broken(lambda model: None, loss=float("nan")),
}


@every_strategy
@pytest.mark.parametrize("kind", [name for name in BROKEN if name != "loss not finite"])
def test_a_broken_reply_costs_only_itself(build: Build, kind: str) -> None:
    expected, records = rounds_of(build(), honest())
    arrays, with_broken = rounds_of(build(), honest({109: BROKEN[kind]}))
    assert payloads(arrays) == payloads(expected)
    for without, record in zip(records, with_broken, strict=True):
        assert record["client-id"] == list(CLIENTS)
        assert record["client-weight"] == without["client-weight"]
        assert (without["quarantined"], record["quarantined"]) == (0, 1)


@pytest.mark.parametrize("name", ["qfedavg", "afl", "term"])
def test_a_loss_that_is_not_finite_costs_only_its_reply(name: str) -> None:
    expected, _ = rounds_of(BUILDS[name](), honest())
    arrays, records = rounds_of(BUILDS[name](), honest({109: BROKEN["loss not finite"]}))
    assert payloads(arrays) == payloads(expected)
    assert [record["quarantined"] for record in records] == [1, 1, 1]


@pytest.mark.parametrize("name", ["fedavg_equal", "fedmgda_plus", "fedheal"])
def test_without_need_of_losses_a_strange_one_is_only_not_recorded(name: str) -> None:
    _, records = rounds_of(BUILDS[name](), honest({109: BROKEN["loss not finite"]}))
    assert records[0]["client-id"] == [*CLIENTS, 9]
    assert "client-loss" not in records[0]


@every_strategy
def test_a_client_that_fails_is_counted(build: Build) -> None:
    expected, _ = rounds_of(build(), honest())
    arrays, records = rounds_of(build(), honest({109: raises}))
    assert payloads(arrays) == payloads(expected)
    assert [(one["quarantined"], one["failed"]) for one in records] == [(0, 1)] * 3


def test_a_client_that_is_silent_is_named(flower_log: pytest.LogCaptureFixture) -> None:
    expected, _ = rounds_of(EqualFedAvg(), honest(), count=1)
    arrays, _ = rounds_of(EqualFedAvg(), honest({109: lambda message: []}), count=1)
    assert payloads(arrays) == payloads(expected)
    assert "round 1, node 109 has no reply here" in flower_log.text


def test_a_step_that_no_number_holds_leaves_the_model_as_it_is() -> None:
    """Replies are set aside one by one until none is left to blame."""
    strategy = FedMGDAPlus(server_learning_rate=1e30, rescale="none")
    arrays, records = rounds_of(strategy, honest(), count=1)
    assert payloads(arrays) == payloads(array_record(MODEL))
    assert records[0]["quarantined"] == len(CLIENTS)


@every_strategy
def test_without_a_usable_reply_the_model_stays(build: Build) -> None:
    strategy = build()
    arrays, _ = rounds_of(strategy, honest())
    state = strategy.saved_state()[0]
    nobody = ClientsGrid({100: raises, 101: raises, 102: broken(not_finite)})
    after, metrics = train_round(strategy, nobody, arrays, 4)
    assert payloads(after) == payloads(arrays)
    assert dict(metrics) == {"quarantined": 1, "failed": 2, "empty": 0}
    assert strategy.saved_state()[0] == state


@every_strategy
def test_no_bit_depends_on_the_order_of_replies(build: Build) -> None:
    def shuffled(replies: list[Message]) -> Sequence[Message]:
        return random.Random(7).sample(replies, len(replies))

    expected = rounds_of(build(), honest())
    other = rounds_of(build(), honest(arrange=shuffled))
    assert payloads(other[0]) == payloads(expected[0])
    assert other[1] == expected[1]


@every_strategy
def test_no_bit_depends_on_node_ids(build: Build) -> None:
    elsewhere = ClientsGrid({900 - 7 * one: client_of(drawn, one) for one in CLIENTS})
    expected = rounds_of(build(), honest())
    other = rounds_of(build(), elsewhere)
    assert payloads(other[0]) == payloads(expected[0])
    assert other[1] == expected[1]


@every_strategy
def test_arrays_keep_names_order_shapes_and_types(build: Build) -> None:
    arrays, _ = rounds_of(build(), honest(), count=1)
    before = array_record(MODEL)
    assert list(arrays) == list(before)
    for name, array in arrays.items():
        assert (array.dtype, array.shape) == (before[name].dtype, before[name].shape)


@every_strategy
def test_running_statistics_and_counters_are_averaged_never_stepped(build: Build) -> None:
    same = local([0.1] * 4, mean=(0.25, -0.5), var=(0.5, 1.0), batches=4)
    arrays, _ = train_round(build(), grid_of([same] * 3), array_record(MODEL))
    model = ndarrays(arrays)
    np.testing.assert_allclose(model["norm.running_mean"], [0.25, 1.5], rtol=1e-6)
    np.testing.assert_allclose(model["norm.running_var"], [0.5, 1.0], rtol=1e-6)
    assert model["norm.num_batches_tracked"] == 14


@every_strategy
@pytest.mark.parametrize("count", [1, 6, 7, 11])
def test_running_variances_never_fall_below_zero(build: Build, count: int) -> None:
    """What momentum, or a difference that rounds, would do to variances that vanish."""

    def vanishing(who: int, server_round: int) -> Local:
        return local([0.1] * 4, var=now)

    strategy = build(min_train_nodes=1, min_available_nodes=1)
    arrays = array_record({**MODEL, "norm.running_var": np.float32([1e6, 3.7e5])})
    grid = ClientsGrid({100 + one: client_of(vanishing, one) for one in range(count)})
    for server_round in range(1, 4):
        now = ndarrays(arrays)["norm.running_var"]
        arrays, _ = train_round(strategy, grid, arrays, server_round)
        assert (ndarrays(arrays)["norm.running_var"] >= 0).all()


EQUALISED = ["fedavg", "fedavg_equal", "fedprox", "afl", "term", "fedmgda_plus", "fedheal"]


@pytest.mark.parametrize("name", EQUALISED)
def test_equal_clients_make_it_fedavg(name: str) -> None:
    same = local([0.5, -0.25, 1.0, 0.125], (0.5, -1.0), batches=3)
    clients = [same] * 4
    expected, _ = train_round(FlowerFedAvg(), grid_of(clients), array_record(MODEL))
    arrays, metrics = train_round(BUILDS[name](), grid_of(clients), array_record(MODEL))
    assert metrics["client-weight"] == pytest.approx([0.25] * 4)
    for key in TRAINED:
        np.testing.assert_allclose(ndarrays(arrays)[key], ndarrays(expected)[key], rtol=1e-6)


@pytest.mark.parametrize("name", [one for one in EQUALISED if one != "fedmgda_plus"])
def test_weights_are_on_the_simplex(name: str) -> None:
    _, records = rounds_of(BUILDS[name](), honest(), count=6)
    for record in records:
        weights = record["client-weight"]
        assert min(weights) >= 0
        assert sum(weights) == pytest.approx(1.0)


@every_strategy
def test_the_round_is_recorded_client_by_client(build: Build) -> None:
    """The lists run over the participants in the order of identity, also beside the app's own."""
    strategy = build(train_metrics_aggr_fn=client_metrics)
    _, records = rounds_of(strategy, honest())
    for server_round, record in enumerate(records, start=1):
        assert record["client-id"] == list(CLIENTS)
        assert record["client-loss"] == [drawn(one, server_round).loss for one in CLIENTS]
        assert len(record["client-weight"]) == len(CLIENTS)
        assert record["train_loss"] > 0


@every_strategy
def test_a_single_client_is_enough(build: Build) -> None:
    strategy = build(min_train_nodes=1, min_available_nodes=1)
    arrays, metrics = train_round(strategy, grid_of([drawn(0, 1)]), array_record(MODEL))
    assert metrics["client-id"] == [0]
    assert all(np.isfinite(array).all() for array in ndarrays(arrays).values())


@pytest.mark.parametrize("strategy", [QFedAvg(client_learning_rate=0.1), AFL(), TERM()])
def test_a_loss_that_nobody_reports_is_an_error_with_its_name(strategy: ScreenedStrategy) -> None:
    clients = [local([0.1] * 4, loss=None)] * 3
    with pytest.raises(MissingLossError, match=rf"{type(strategy).__name__}.*'train_loss'"):
        train_round(strategy, grid_of(clients), array_record(MODEL))


@pytest.mark.parametrize("name", ["fedavg", "term", "fedadam"])
def test_a_reply_without_examples_is_set_aside_where_others_have_them(name: str) -> None:
    clients = [drawn(0, 1), local([0.3] * 4, examples=None), drawn(2, 1)]
    _, metrics = train_round(BUILDS[name](), grid_of(clients), array_record(MODEL))
    assert metrics["client-id"] == [0, 2]
    assert metrics["quarantined"] == 1


@pytest.mark.parametrize("name", ["fedavg", "term"])
def test_where_nobody_has_examples_all_count_the_same(name: str) -> None:
    clients = [local([0.3] * 4, examples=None)] * 4
    _, metrics = train_round(BUILDS[name](), grid_of(clients), array_record(MODEL))
    assert metrics["client-weight"] == [0.25] * 4


@every_strategy
def test_who_had_an_identity_first_keeps_it(build: Build) -> None:
    """Another node may speak for client 0 while its own is away, and no longer."""
    own, other = client_of(drawn, 0), client_of(lambda who, now: drawn(77, now), 0)
    others = {100 + one: client_of(drawn, one) for one in (1, 2)}
    strategy, arrays, losses = build(), array_record(MODEL), []
    for server_round, at_nodes in enumerate(
        ({100: own}, {50: other}, {50: other, 100: own}), start=1
    ):
        grid = ClientsGrid({**at_nodes, **others})
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        assert metrics["client-id"] == [0, 1, 2]
        assert metrics["quarantined"] == len(at_nodes) - 1
        losses.append(metrics["client-loss"][0])  # type: ignore[index]
    assert losses == [drawn(0, 1).loss, drawn(77, 2).loss, drawn(0, 3).loss]


@every_strategy
def test_one_odd_evaluation_reply_costs_only_itself(build: Build) -> None:
    def odd(message: Message) -> list[Message]:
        return [Message(RecordDict({"metrics": MetricRecord({"other": 1})}), reply_to=message)]

    strategy, grid = build(), honest({109: odd})
    messages = strategy.configure_evaluate(1, array_record(MODEL), ConfigRecord(), grid)
    metrics = strategy.aggregate_evaluate(1, grid.send_and_receive(messages))
    assert metrics is not None
    assert metrics["accuracy"] == pytest.approx(np.mean([0.5 + 0.01 * one for one in CLIENTS]))
    assert (metrics["quarantined"], metrics["failed"]) == (1, 0)


@every_strategy
def test_aggregating_before_a_round_is_an_error(build: Build) -> None:
    with pytest.raises(RuntimeError, match="configure_train"):
        build().aggregate_train(1, [])


def test_a_model_that_is_not_finite_is_not_sent() -> None:
    model = {**MODEL, "body.bias": np.float32([np.inf, 0])}
    with pytest.raises(ValueError, match=r"round 1: tensor 'body\.bias' holds values"):
        train_round(EqualFedAvg(), honest(), array_record(model))


@every_strategy
def test_the_summary_names_the_settings(build: Build, flower_log: pytest.LogCaptureFixture) -> None:
    strategy = build()
    strategy.summary()
    logged = flower_log.text
    assert type(strategy).__name__ in logged
    for name, value in strategy.settings.items():
        assert f"{name} ({value})" in logged


def clients_at(nodes: Sequence[int]) -> ClientsGrid:
    """Client k at the k-th node; the grid lists them by node, which says nothing about them."""
    clients = {node: client_of(drawn, one) for one, node in enumerate(nodes)}
    return ClientsGrid(dict(sorted(clients.items())))


class Killed(Exception):
    """Stands for a process that is killed: nothing after it is done."""


def run(
    strategy: ScreenedStrategy,
    folder: Path,
    nodes: Sequence[int],
    killed_in: int | None = None,
    resume: bool = False,
    busy: bool = False,
) -> Result:
    def at_risk(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if busy and server_round > 0:
            random.random()
        if server_round == killed_in:
            raise Killed
        return MetricRecord({"sum": sum(float(one.numpy().sum()) for one in arrays.values())})

    strategy.sampling.asks_identities = True
    return run_rounds(
        strategy,
        CheckpointStore(folder),
        clients_at(nodes),
        array_record(MODEL),
        num_rounds=6,
        evaluate_fn=at_risk,
        resume=resume,
    )


def everything(result: Result) -> object:
    metrics = [
        {server_round: dict(record) for server_round, record in records.items()}
        for records in (result.train_metrics_clientapp, result.evaluate_metrics_serverapp)
    ]
    return payloads(result.arrays), metrics


FIRST, LATER = [31, 5, 17, 88, 2, 60], [7, 93, 14, 3, 71, 40]


@every_strategy
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_killed_run_ends_as_if_it_had_not_been(
    build: Build, fraction: float, tmp_path: Path
) -> None:
    """Also where its clients come back at other nodes, and some are drawn by chance."""
    options = {"fraction_train": fraction, "fraction_evaluate": 0.0}
    random.seed(5)
    expected = everything(run(build(**options), tmp_path / "whole", FIRST))
    for killed_in in (2, 4):
        folder = tmp_path / f"{killed_in}"
        random.seed(5)
        with pytest.raises(Killed):
            run(build(**options), folder, FIRST, killed_in=killed_in)
        random.seed(killed_in)
        result = run(build(**options), folder, LATER, resume=True)
        assert everything(result) == expected


OWN_STATE = [name for name in BUILDS if name not in ("fedavgm", "fedadam")]
"""Strategies whose memory is not partly Flower's, which the checkpoint takes out by itself."""


@pytest.mark.parametrize("name", OWN_STATE)
def test_state_taken_between_two_rounds_goes_on_bit_by_bit(name: str) -> None:
    build = BUILDS[name]
    whole, first = build(), build()
    expected, _ = rounds_of(whole, honest(), count=4)
    arrays, _ = rounds_of(first, honest(), count=2)
    state, tensors = first.saved_state()
    taken = {name: tensor.clone() for name, tensor in tensors.items()}
    rounds_of(first, honest(), count=1)
    assert all(tensors[name].equal(tensor) for name, tensor in taken.items())
    second = build()
    assert isinstance(second, Stateful)
    second.restore_state(state, tensors)
    for server_round in (3, 4):
        arrays, _ = train_round(second, honest(), arrays, server_round)
    assert payloads(arrays) == payloads(expected)
    assert second.saved_state()[0] == whole.saved_state()[0]


@every_strategy
def test_every_strategy_draws_the_clients_that_fedpw_draws(build: Build) -> None:
    """A seed decides who takes part, whatever the method and Flower's node ids."""

    def drawn_by(strategy: FedPW | ScreenedStrategy, nodes: Sequence[int]) -> list[list[int]]:
        strategy.sampling.asks_identities = True
        grid = clients_at(nodes)
        random.seed(11)
        arrays, ids = array_record(MODEL), []
        for server_round in range(1, 5):
            arrays, metrics = train_round(strategy, grid, arrays, server_round)
            listed = metrics["fedpw-client-id" if isinstance(strategy, FedPW) else "client-id"]
            assert isinstance(listed, list)
            ids.append([int(one) for one in listed])
        return ids

    expected = drawn_by(FedPW(fraction_train=0.5), FIRST)
    assert {len(ids) for ids in expected} == {3}
    assert drawn_by(build(fraction_train=0.5), LATER) == expected


@every_strategy
def test_others_who_take_random_numbers_change_no_draw(build: Build, tmp_path: Path) -> None:
    """Flower's heartbeats and retries do, whenever they happen to come."""
    random.seed(5)
    expected = everything(run(build(fraction_train=0.5), tmp_path / "quiet", FIRST))
    random.seed(5)
    with pytest.raises(Killed):
        run(build(fraction_train=0.5), tmp_path / "busy", FIRST, killed_in=4, busy=True)
    result = run(build(fraction_train=0.5), tmp_path / "busy", LATER, resume=True, busy=True)
    assert everything(result) == expected


@every_strategy
def test_what_is_no_state_is_refused(build: Build) -> None:
    with pytest.raises(ValueError, match="not a saved state"):
        build().restore_state({"rounds": 1}, {})


def test_a_run_with_other_settings_is_another_run(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(FedHEAL(tau=0.2), tmp_path, FIRST, killed_in=3)
    with pytest.raises(CheckpointError, match="tau"):
        run(FedHEAL(tau=0.3), tmp_path, FIRST, resume=True)
