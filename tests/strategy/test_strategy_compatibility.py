"""What FedPW cannot be combined with fails at the start, by name, and before anyone trains."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    Strategy,
)
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM
from support.adjusting_clients import following
from support.grid import ClientsGrid
from support.records import array_record
from support.small_model import MODEL, evaluating

from fedpw_flwr import FedPW

NODES = [1, 2, 3]

Wrap = Callable[[Strategy], Strategy]
FIXED = {"noise_multiplier": 1.0, "clipping_norm": 1.0, "num_sampled_clients": 3}
ADAPTIVE = {"noise_multiplier": 0.1, "num_sampled_clients": 3}

WRAPPERS: dict[str, Wrap] = {
    wrapper.__name__: functools.partial(wrapper, **options)
    for wrapper, options in (
        (DifferentialPrivacyServerSideFixedClipping, FIXED),
        (DifferentialPrivacyServerSideAdaptiveClipping, ADAPTIVE),
        (DifferentialPrivacyClientSideFixedClipping, FIXED),
        (DifferentialPrivacyClientSideAdaptiveClipping, ADAPTIVE),
    )
}


class FedPWAdam(FedAdam, FedPW):
    """A server optimizer on top of FedPW."""


STRATEGIES: dict[str, Callable[[], FedPW]] = {
    "server": FedPW,
    "client": lambda: FedPW(adjustment="client"),
    "packed": lambda: FedPW(adjustment="client", upload="packed"),
    "Adam": FedPWAdam,
}


@pytest.fixture
def grid() -> ClientsGrid:
    return ClientsGrid(dict.fromkeys(NODES, evaluating(following())))


def assert_nothing_was_sent(grid: ClientsGrid) -> None:
    assert grid.sent == []
    assert grid.times_asked_for_nodes == 0


def never(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    raise AssertionError("evaluated before the refusal")


@pytest.mark.parametrize(
    ("wrapper", "strategy"),
    [*itertools.product(WRAPPERS, ["server"]), *itertools.product(list(WRAPPERS)[:1], STRATEGIES)],
)
def test_central_differential_privacy_around_fedpw_is_refused_at_the_start(
    wrapper: str, strategy: str, grid: ClientsGrid
) -> None:
    wrapped = WRAPPERS[wrapper](STRATEGIES[strategy]())
    with pytest.raises(ValueError, match=f"inside {wrapper}: .*LocalDpMod"):
        wrapped.start(grid, array_record(MODEL), num_rounds=1, evaluate_fn=never)
    assert_nothing_was_sent(grid)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapper_whose_round_is_driven_by_hand_is_refused_too(
    wrapper: str, grid: ClientsGrid
) -> None:
    # Without `start`, configure_train is the first that FedPW hears of it.
    wrapped = WRAPPERS[wrapper](FedPW(adjustment="client"))
    with pytest.raises(ValueError, match=wrapper):
        list(wrapped.configure_train(1, array_record(MODEL), ConfigRecord(), grid))
    assert_nothing_was_sent(grid)


def test_wrapper_inside_a_users_own_wrapper_is_named(grid: ClientsGrid) -> None:
    class Own(FedAvg):
        """A user's strategy that passes on to another."""

        def __init__(self, inner: Strategy) -> None:
            super().__init__()
            self.inner = inner

        def summary(self) -> None:
            self.inner.summary()

    wrapper = "DifferentialPrivacyServerSideFixedClipping"
    with pytest.raises(ValueError, match=wrapper):
        Own(WRAPPERS[wrapper](FedPW())).start(grid, array_record(MODEL), num_rounds=1)
    assert_nothing_was_sent(grid)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_around_other_strategies_are_none_of_fedpws_business(
    wrapper: str, grid: ClientsGrid
) -> None:
    # FedPW runs while a wrapped FedAvg exists and after one was started in the same process.
    bystander = WRAPPERS[wrapper](FedAvg())
    bystander.summary()
    result = FedPW(adjustment="client").start(grid, array_record(MODEL), num_rounds=1)
    assert result.train_metrics_clientapp[1]["fedpw-client-id"] == NODES


CLIPPING = ConfigRecord({KEY_CLIPPING_NORM: 1.0})


def test_clipping_norm_in_the_configuration_of_packed_uploads_is_refused_at_the_start(
    grid: ClientsGrid,
) -> None:
    strategy = FedPW(adjustment="client", upload="packed")
    with pytest.raises(ValueError, match=rf'{KEY_CLIPPING_NORM}.*FedPW\(upload="dense"\)'):
        strategy.start(grid, array_record(MODEL), num_rounds=1, train_config=CLIPPING)
    assert_nothing_was_sent(grid)


@pytest.mark.parametrize("strategy", ["server", "client"])
def test_clipping_norm_in_the_configuration_is_fine_with_dense_uploads(
    strategy: str, grid: ClientsGrid
) -> None:
    result = STRATEGIES[strategy]().start(
        grid, array_record(MODEL), num_rounds=3, train_config=CLIPPING.copy()
    )
    assert result.train_metrics_clientapp[3]["fedpw-quarantined"] == 0
    for message in grid.sent:
        if message.metadata.message_type == "train":
            assert message.content.config_records["config"][KEY_CLIPPING_NORM] == 1.0
