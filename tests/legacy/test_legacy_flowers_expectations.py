"""What Flower's own tests expect of the legacy FedAvg holds with FedPW in its place."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from support.legacy_federation import PlainClient, ask

from fedpw_flwr.legacy import FedPW

SHAPES = [(100, 64), (31, 62, 3)]


@pytest.mark.parametrize(
    ("fraction", "available", "expected"),
    [(1.0, 20, 20), (1.0, 9, 9), (0.05, 40, 2), (0.05, 39, 2), (0.05, 19, 2), (0.25, 30, 7)],
)
def test_numbers_of_clients_worked_out_by_hand(
    fraction: float, available: int, expected: int
) -> None:
    """A fraction is rounded down, and two take part at least."""
    strategy = FedPW(fraction_fit=fraction, fraction_evaluate=fraction)
    assert strategy.num_fit_clients(available) == (expected, 2)
    assert strategy.num_evaluation_clients(available) == (expected, 2)


def results_of(models: dict[int, tuple[list[np.ndarray], int]]) -> list[ClientProxy]:
    """Clients that return these arrays and numbers of examples, and no metric at all."""

    def fit(node: int, ins: FitIns) -> FitRes:
        arrays, examples = models[node]
        return FitRes(Status(Code.OK, "Success"), ndarrays_to_parameters(arrays), examples, {})

    return [PlainClient(node, fit) for node in models]


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("examples", [(1, 5), (7, 2, 4), (3,)])
def test_without_its_two_parts_it_is_the_weighted_mean(
    inplace: bool, examples: tuple[int, ...]
) -> None:
    """Without a loss in any reply: none is needed then."""
    rng = np.random.default_rng(len(examples))
    models = {
        node: ([rng.standard_normal(shape) for shape in SHAPES], count)
        for node, count in enumerate(examples, start=31)
    }
    start = ndarrays_to_parameters([rng.standard_normal(shape) for shape in SHAPES])
    strategy = FedPW(
        adapt_weights=False,
        adjust_parameters=False,
        inplace=inplace,
        min_fit_clients=1,
        min_available_clients=1,
    )
    results, failures = ask(strategy, results_of(models), start, 1)
    aggregated, metrics = strategy.aggregate_fit(1, results, failures)
    assert aggregated is not None
    flowers, _ = FedAvg(inplace=False).aggregate_fit(1, results, failures)
    assert flowers is not None
    assert metrics["fedpw-quarantined"] == 0
    for ours, theirs, place in zip(
        parameters_to_ndarrays(aggregated), parameters_to_ndarrays(flowers), range(2), strict=True
    ):
        by_hand = np.average([arrays[place] for arrays, _ in models.values()], 0, list(examples))
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(ours, by_hand, rtol=1e-9, atol=1e-12)
