"""The options of all strategies, typed once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from flwr.app import MetricRecord, RecordDict
from flwr.common import MetricsAggregationFn, NDArrays, Parameters, Scalar

from fedpw_flwr.rounds.attendance import WhenMissing
from fedpw_flwr.rounds.observers import Observer
from fedpw_flwr.wire.adjustment import Upload
from fedpw_flwr.wire.packing import UploadDtype

Adjustment = Literal["server", "client"]

LossSource = Literal["train", "evaluate"]

MetricsAggregation = Callable[[list[RecordDict], str], MetricRecord]

LegacyEvaluation = Callable[
    [int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]] | None
]


class FedAvgOptions(TypedDict, total=False):
    """Options of Flower's FedAvg."""

    fraction_train: float
    fraction_evaluate: float
    min_train_nodes: int
    min_evaluate_nodes: int
    min_available_nodes: int
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str
    train_metrics_aggr_fn: MetricsAggregation | None
    evaluate_metrics_aggr_fn: MetricsAggregation | None


class LegacyFedAvgOptions(TypedDict, total=False):
    """Options of FedAvg in Flower's legacy API."""

    fraction_fit: float
    fraction_evaluate: float
    min_fit_clients: int
    min_evaluate_clients: int
    min_available_clients: int
    evaluate_fn: LegacyEvaluation | None
    on_fit_config_fn: Callable[[int], dict[str, Scalar]] | None
    on_evaluate_config_fn: Callable[[int], dict[str, Scalar]] | None
    accept_failures: bool
    initial_parameters: Parameters | None
    fit_metrics_aggregation_fn: MetricsAggregationFn | None
    evaluate_metrics_aggregation_fn: MetricsAggregationFn | None
    inplace: bool


class BaselineOptions(FedAvgOptions, total=False):
    """Options that all baselines have."""

    train_loss_key: str


class MethodOptions(TypedDict, total=False):
    """Options of FedPW that are the method's, under both of Flower's APIs."""

    avg_drop_rate: float
    beta: float
    train_loss_key: str
    loss_source: LossSource
    evaluate_loss_key: str
    clip_weights: bool
    adjust_parameters: bool
    adapt_weights: bool
    max_weight: float | None
    max_loss_ratio: float | None
    trainable: Sequence[str] | None
    device: str | torch.device | None
    adjustment: Adjustment
    upload: Upload
    upload_dtype: UploadDtype


class RunOptions(TypedDict, total=False):
    """Options of FedPW on the run around its rounds: how long to wait, who is told."""

    wait_for_clients: float | None
    when_missing: WhenMissing
    observers: Sequence[Observer]


class FedPWOptions(FedAvgOptions, MethodOptions, RunOptions, total=False):
    """All options of `fedpw_flwr.FedPW`."""

    checkpoint_dir: str | Path | None
    checkpoint_every: int
    resume: bool
    seed: int | None


class LegacyFedPWOptions(LegacyFedAvgOptions, MethodOptions, RunOptions, total=False):
    """All options of `fedpw_flwr.legacy.FedPW` but `array_names`."""


def split(options: Mapping[str, Any], kind: type) -> tuple[Any, Any]:
    """Return the method's options and the others; TypeError if one is not in a TypedDict."""
    allowed, of_method = kind.__annotations__, MethodOptions.__annotations__
    for name in options.keys() - allowed.keys():
        alike = difflib.get_close_matches(name, allowed, n=1)
        meant = f"; did you mean {alike[0]}?" if alike else ""
        raise TypeError(f"FedPW has no option {name!r}{meant}")
    return (
        {name: value for name, value in options.items() if name in of_method},
        {name: value for name, value in options.items() if name not in of_method},
    )
