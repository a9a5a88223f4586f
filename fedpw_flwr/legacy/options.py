"""The options of strategies of Flower's legacy API, typed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from flwr.common import MetricsAggregationFn, NDArrays, Parameters, Scalar

from fedpw_flwr.strategy.options import AttendanceOptions, MethodOptions

__all__ = ["LegacyFedAvgOptions", "LegacyFedPWOptions"]

EvaluateFn = Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]] | None]


class LegacyFedAvgOptions(TypedDict, total=False):
    """Options of FedAvg in Flower's legacy API."""

    fraction_fit: float
    fraction_evaluate: float
    min_fit_clients: int
    min_evaluate_clients: int
    min_available_clients: int
    evaluate_fn: EvaluateFn | None
    on_fit_config_fn: Callable[[int], dict[str, Scalar]] | None
    on_evaluate_config_fn: Callable[[int], dict[str, Scalar]] | None
    accept_failures: bool
    initial_parameters: Parameters | None
    fit_metrics_aggregation_fn: MetricsAggregationFn | None
    evaluate_metrics_aggregation_fn: MetricsAggregationFn | None
    inplace: bool


class LegacyFedPWOptions(LegacyFedAvgOptions, MethodOptions, AttendanceOptions, total=False):
    """All options of `fedpw_flwr.legacy.FedPW` but `array_names`."""
