"""fedpw_mod beside Flower's own mods: which order, and what holds in the other one.

What clips, adds noise or measures has to see what FedPW sends, so FedPW stands last in the list:
``mods=[fixedclipping_mod, fedpw_mod]``. The models here hold no integers, which Flower's clipping
cannot take.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client import mod as legacy_mods
from flwr.client.mod import secagg_mod, secaggplus_mod
from flwr.client.mod.secure_aggregation.secaggplus_mod import SecAggPlusState
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)
from flwr.clientapp.typing import Mod
from flwr.common import FitIns, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import (
    RECORD_KEY_CONFIGS,
    RECORD_KEY_STATE,
    Key,
    Stage,
)
from flwr.compat.common import recorddict_compat as compat
from flwr.server import SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from support.clients import (
    FLOATS,
    NODES,
    NoisyClient,
    answer,
    arrays_of,
    as_list,
    config_of,
    context_of,
    functions_app,
    message_to,
    noisy_train,
    over_the_wire,
    reference_update,
    request_entries,
    train_message,
)
from support.grid import ClientsGrid
from support.records import NDArrays, array_record, left_out_of, ndarrays, payloads
from support.reference import entry_count

from fedpw_flwr import FedPW, FedPWClient, fedpw_mod, numpy_client_app
from fedpw_flwr.legacy import FedPW as LegacyFedPW
from fedpw_flwr.wire.adjustment import REPORT_KEY, REQUEST_KEY, AdjustmentReport, AdjustmentRequest

FAR, TIGHT = 1e6, 0.3
"""Clipping norms: above every update here, and below every one."""

NO_NOISE = LocalDpMod(clipping_norm=TIGHT, sensitivity=0.0, epsilon=1.0, delta=0.1)
SOME_NOISE = LocalDpMod(clipping_norm=TIGHT, sensitivity=0.01, epsilon=1.0, delta=0.1)

of_function = pytest.mark.parametrize("of_function", [False, True], ids=["app", "function"])


class NamelessDp(LocalDpMod):
    """Local DP of a project's own making."""


@dataclass
class Run:
    """A whole run of FedPW over clients with mods, and every message of it."""

    final: NDArrays = field(default_factory=dict)
    metrics: dict[int, MetricRecord] = field(default_factory=dict)
    sent: dict[tuple[int, int], Message] = field(default_factory=dict)
    replies: dict[tuple[int, int], Message] = field(default_factory=dict)

    @property
    def failed(self) -> list[int]:
        return [left_out_of(metrics) for metrics in self.metrics.values()]

    def update(self, server_round: int, node: int) -> Any:
        """What the server got from a client, as one long w − w_k."""
        before = ndarrays(arrays_of(self.sent[server_round, node]))
        after = ndarrays(arrays_of(self.replies[server_round, node]))
        return np.concatenate([(before[name] - after[name]).reshape(-1) for name in before])


def run(
    app: ClientApp | Sequence[Mod],
    norm: float | None = None,
    rounds: int = 4,
    of_function: bool = False,
    **arguments: Any,
) -> Run:
    """`app` is a ClientApp, or the mods of one of functions."""
    if not isinstance(app, ClientApp):
        app = functions_app(app, of_function=of_function)
    result, whole = Run(), app

    def client(message: Message) -> list[Message]:
        key = int(config_of(message)["server-round"]), message.metadata.dst_node_id
        result.sent[key] = message
        reply = over_the_wire(whole(over_the_wire(message), context_of(key[1])))
        result.replies[key] = reply
        return [reply]

    strategy = FedPW(
        **{"adjustment": "client", **arguments},
        fraction_evaluate=0.0,
        min_available_nodes=len(NODES),
    )
    random.seed(0)
    of_run = strategy.start(
        grid=ClientsGrid(dict.fromkeys(NODES, client)),
        initial_arrays=array_record(FLOATS),
        num_rounds=rounds,
        train_config=ConfigRecord({} if norm is None else {"clipping_norm": norm}),
    )
    result.final = ndarrays(of_run.arrays)
    result.metrics = dict(of_run.train_metrics_clientapp)
    return result


def assert_close(first: NDArrays, second: NDArrays) -> None:
    """The same model, but for what clipping by nothing (w + (w_k − w)) rounds."""
    assert list(first) == list(second)
    for name, array in first.items():
        np.testing.assert_allclose(array, second[name], rtol=1e-5, atol=1e-6)


ORDERS: dict[str, list[Mod]] = {
    "fixed clipping": [fixedclipping_mod],
    "adaptive clipping": [adaptiveclipping_mod],
    "message size": [message_size_mod],
    "arrays size": [arrays_size_mod],
    "clipping and size": [message_size_mod, fixedclipping_mod, arrays_size_mod],
}
NORM_OF_MODS = {"fixed clipping": fixedclipping_mod, "adaptive clipping": adaptiveclipping_mod}
clipping = pytest.mark.parametrize("mod", NORM_OF_MODS.values(), ids=NORM_OF_MODS)


# FedPW last: what Flower's mods see is what FedPW sends


@pytest.mark.parametrize("order", ORDERS)
@of_function
def test_flowers_mods_stand_in_front_of_fedpws(order: str, of_function: bool) -> None:
    result = run([*ORDERS[order], fedpw_mod], TIGHT, of_function=of_function)
    assert result.failed == [0] * 4
    for (server_round, node), reply in result.replies.items():
        request = AdjustmentRequest.decode(config_of(result.sent[server_round, node])[REQUEST_KEY])
        report = AdjustmentReport.decode(reply.content[REPORT_KEY][REPORT_KEY], len(FLOATS))
        assert report.rate == request.rate
        assert (report.rate > 0) == (server_round > 1)
        assert report.consensus_round == (server_round - 1 if server_round > 2 else None)
        assert list(reply.content.array_records) == ["arrays"]


@pytest.mark.parametrize("mod", [message_size_mod, arrays_size_mod])
@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_mods_that_only_measure_change_nothing(mod: Mod, upload: str) -> None:
    expected = run([fedpw_mod], upload=upload)
    orders: list[list[Mod]] = [[mod, fedpw_mod], [fedpw_mod, mod]]
    for mods in orders:
        result = run(mods, upload=upload)
        assert payloads(array_record(result.final)) == payloads(array_record(expected.final))
        assert result.failed == [0] * 4


@clipping
def test_clipping_scales_the_adjusted_update_and_leaves_masked_entries_masked(mod: Mod) -> None:
    members = np.arange(24) % 3 == 0
    entries = {**request_entries(0.3, {0: (members, 1.5)}), "clipping_norm": TIGHT}
    reply = answer(functions_app([mod, fedpw_mod]), train_message(FLOATS, entries))
    start = as_list(FLOATS)
    after, _, _ = NoisyClient(NODES[0]).fit(as_list(FLOATS), {"server-round": 1})
    consensus: list[tuple[Any, ...]] = [(members, 1.5), (), ()]
    updates = [
        reference_update(before, end, 0.3, *own)[0]
        for before, end, own in zip(start, after, consensus, strict=True)
    ]
    scale = TIGHT / np.linalg.norm(np.concatenate(updates))
    assert scale < 1
    for before, update, sent in zip(
        start, updates, ndarrays(arrays_of(reply)).values(), strict=True
    ):
        moved = before.reshape(-1) - sent.reshape(-1)
        np.testing.assert_allclose(moved, scale * update, rtol=1e-4, atol=1e-6)
        assert np.count_nonzero(moved == 0) == entry_count(before.size, 0.3)


def test_inside_local_dp_the_update_is_sent_as_trained_and_the_server_adjusts_it() -> None:
    """FedPW's report would tell norms and magnitudes of the update without any noise."""
    in_front: list[list[Mod]] = [[NO_NOISE], [NO_NOISE, fixedclipping_mod]]
    for mods in in_front:
        result, without = run([*mods, fedpw_mod], TIGHT), run(mods, TIGHT)
        assert result.failed == [0] * 4
        assert all(REPORT_KEY not in reply.content for reply in result.replies.values())
        assert payloads(array_record(result.final)) == payloads(array_record(without.final))


@pytest.mark.parametrize("mod", [*NORM_OF_MODS.values(), NO_NOISE], ids=[*NORM_OF_MODS, "local DP"])
def test_the_wrapper_stands_behind_flowers_mods_like_the_mod(mod: Mod) -> None:
    app = numpy_client_app(lambda context: FedPWClient(NoisyClient(context.node_id)), mods=[mod])
    result, expected = run(app, TIGHT), run([mod, fedpw_mod], TIGHT)
    assert result.failed == [0] * 4
    assert payloads(array_record(result.final)) == payloads(array_record(expected.final))


# An update masked to nothing


def far_better_train(message: Message, context: Context) -> Message:
    """Node 12 reports a loss so small that its drop rate is 1."""
    reply = noisy_train(message, context)
    if context.node_id == 12:
        reply.content.metric_records["metrics"]["train_loss"] = 0.001
    return reply


@clipping
@pytest.mark.parametrize("norm", [FAR, TIGHT])
def test_an_update_masked_to_nothing_passes_clipping_and_counts_for_nothing(
    mod: Mod, norm: float
) -> None:
    result = run(functions_app([mod, fedpw_mod], far_better_train), norm, max_loss_ratio=None)
    assert result.failed == [0] * 4
    for server_round, metrics in result.metrics.items():
        rates = metrics["fedpw-drop-rate"]
        assert isinstance(rates, list)
        assert (rates[1] == 1.0) == (server_round > 1)
        assert (REPORT_KEY in result.replies[server_round, 12].content) == (server_round == 1)
        assert np.linalg.norm(result.update(server_round, 12)) <= norm * (1 + 1e-4)
    if norm == FAR:
        free = run(functions_app([fedpw_mod], far_better_train), max_loss_ratio=None)
        on_server = run(functions_app([], far_better_train), max_loss_ratio=None)
        assert_close(result.final, free.final)
        assert payloads(array_record(free.final)) == payloads(array_record(on_server.final))


# The other order: FedPW changes what was clipped


@clipping
def test_in_front_of_clipping_uploads_may_be_packed(mod: Mod) -> None:
    entries = {**request_entries(0.3, None, "packed"), "clipping_norm": TIGHT}
    reply = answer(functions_app([fedpw_mod, mod]), train_message(FLOATS, entries))
    report = AdjustmentReport.decode(reply.content[REPORT_KEY][REPORT_KEY], len(FLOATS))
    assert report.packed == (0,)


# Packed uploads behind mods that need arrays


def never(message: Message, context: Context) -> Message:
    raise AssertionError("the train function was called")


class NeverTrains(NumPyClient):
    def fit(self, parameters: Any, config: Any) -> Any:
        raise AssertionError("the client was trained")


NEED_DENSE: dict[str, tuple[list[Mod], str]] = {
    "fixed clipping": ([fixedclipping_mod], "fixedclipping_mod"),
    "adaptive clipping": ([adaptiveclipping_mod], "adaptiveclipping_mod"),
    "local DP": ([SOME_NOISE], "LocalDpMod"),
    "a kind of local DP": ([NamelessDp(1.0, 0.1, 1.0, 0.1)], "LocalDpMod"),
    "not next to it": ([fixedclipping_mod, message_size_mod], "fixedclipping_mod"),
    "not outermost": ([arrays_size_mod, SOME_NOISE], "LocalDpMod"),
}
PACKED: dict[str, Any] = {**request_entries(0.3, None, "packed"), "clipping_norm": TIGHT}
need_dense = pytest.mark.parametrize(("mods", "name"), NEED_DENSE.values(), ids=NEED_DENSE.keys())


APPS: dict[str, Callable[[list[Mod]], ClientApp]] = {
    "mod of the app": lambda mods: functions_app([*mods, fedpw_mod], never),
    "mod of the function": lambda mods: functions_app([*mods, fedpw_mod], never, of_function=True),
    "wrapper": lambda mods: numpy_client_app(lambda _: FedPWClient(NeverTrains()), mods=mods),
}


@need_dense
@pytest.mark.parametrize("app", APPS)
def test_a_packed_upload_behind_a_mod_that_needs_arrays_is_an_error_before_training(
    mods: list[Mod], name: str, app: str
) -> None:
    with pytest.raises(ValueError, match=rf'{name} needs the arrays.*FedPW\(upload="dense"\)'):
        answer(APPS[app](mods), train_message(FLOATS, PACKED))


LEGACY_DP = legacy_mods.LocalDpMod(TIGHT, 0.01, 1.0, 0.1)


@pytest.mark.parametrize(
    ("mod", "name"),
    [
        (legacy_mods.fixedclipping_mod, "fixedclipping_mod"),
        (legacy_mods.adaptiveclipping_mod, "adaptiveclipping_mod"),
        (LEGACY_DP, "LocalDpMod"),
    ],
    ids=["fixed clipping", "adaptive clipping", "local DP"],
)
def test_the_wrapper_notices_the_mods_of_flowers_legacy_clients(mod: Mod, name: str) -> None:
    app = ClientApp(lambda context: FedPWClient(NeverTrains()).to_client(), mods=[mod])
    parameters = ndarrays_to_parameters(as_list(FLOATS))
    content = compat.fitins_to_recorddict(FitIns(parameters, dict(PACKED)), keep_input=True)
    with pytest.raises(ValueError, match=rf'{name} needs the arrays.*FedPW\(upload="dense"\)'):
        answer(app, message_to(content))


def test_a_legacy_server_that_clips_cannot_ask_for_packed_uploads() -> None:
    strategy = LegacyFedPW(
        adjustment="client",
        upload="packed",
        min_available_clients=1,
        on_fit_config_fn=lambda server_round: {"clipping_norm": TIGHT},
    )
    manager = SimpleClientManager()
    for node in NODES:
        manager.register(GridClientProxy(node, ClientsGrid({}), run_id=1))
    parameters = ndarrays_to_parameters(as_list(FLOATS))
    with pytest.raises(ValueError, match=r'clipping_norm.*FedPW\(upload="dense"\)'):
        strategy.configure_fit(1, parameters, manager)


def test_a_run_with_packed_uploads_behind_local_dp_ends_before_training() -> None:
    with pytest.raises(RuntimeError, match=r"no client can .*LocalDpMod needs the arrays"):
        run(functions_app([SOME_NOISE, fedpw_mod], never), rounds=1, upload="packed")


@clipping
def test_clipped_clients_and_the_server_agree_on_the_factors(mod: Mod) -> None:
    """f = 1 + m/a compares magnitudes: m_k counts in the scale to which the update was clipped."""

    def factor(mods: list[Mod]) -> float:
        amplification = run(mods, TIGHT, rounds=3).metrics[3]["fedpw-amplification"]
        assert isinstance(amplification, float)
        return amplification

    on_server, on_clients = factor([mod]), factor([mod, fedpw_mod])
    assert on_server > 1.01
    assert on_clients - 1 == pytest.approx(on_server - 1, rel=0.1)


# Secure aggregation, and mods that refuse by themselves


@pytest.mark.parametrize("mod", [secagg_mod, secaggplus_mod])
@pytest.mark.parametrize("upload", ["dense", "packed"])
def test_secure_aggregation_is_an_error_before_training(mod: Mod, upload: str) -> None:
    config = {
        **request_entries(0.3, None, upload),
        Key.STAGE: Stage.COLLECT_MASKED_VECTORS,
        Key.CIPHERTEXT_LIST: [b"share"],
        Key.SOURCE_LIST: [12],
    }
    content = RecordDict({"arrays": array_record(FLOATS), RECORD_KEY_CONFIGS: ConfigRecord(config)})
    context = context_of(NODES[0])
    state = SecAggPlusState(current_stage=Stage.SHARE_KEYS)
    context.state[RECORD_KEY_STATE] = ConfigRecord(state.to_dict())
    app = functions_app([mod, fedpw_mod], never)
    refused = r"secagg.*_mod hides the individual updates.*take the mod out of every client"
    with pytest.raises(ValueError, match=refused):
        app(message_to(content), context)


@pytest.mark.parametrize("behind", [True, False])
def test_an_error_reply_of_a_mod_passes_through_fedpws(behind: bool) -> None:
    mods: list[Mod] = [fixedclipping_mod, fedpw_mod]
    mods = mods[::-1] if behind else mods
    reply = answer(functions_app(mods, never), train_message(FLOATS, request_entries(0.3)))
    assert reply.has_error()
    assert "fixedclipping_mod requires the key 'clipping_norm'" in str(reply.error.reason)
