"""Claims about the fairness metrics, by hand-computed cases, as properties, and inside Flower."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.common import Code, EvaluateRes, Scalar, Status
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from hypothesis import given
from hypothesis import strategies as st

from fedpw_flwr import FedPW, fairness

SHARE_METRICS = [fairness.jain_index, fairness.entropy, fairness.angle]
METRICS = [
    *(fairness.mean, fairness.standard_deviation, fairness.worst, fairness.best),
    *SHARE_METRICS,
    fairness.fairness_report,
]
NAMES = [
    *("clients", "mean", "std", "worst", "best", "worst-5", "worst-10", "worst-20"),
    *("best-5", "best-10", "best-20", "jain-index", "entropy", "angle"),
]

accuracies = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60)
non_negative = st.lists(st.floats(0.0, sys.float_info.max), min_size=1, max_size=30)


# --- Plain functions: hand-computed cases ----------------------------------------------------


def test_report_of_four_clients() -> None:
    report = fairness.fairness_report([0.4, 0.8, 0.6, 0.2])
    assert report.to_dict() == pytest.approx(
        {
            "clients": 4,
            "mean": 0.5,
            "std": math.sqrt(0.2 / 3),  # (0.01 + 0.09 + 0.01 + 0.09) / (4 - 1)
            **dict.fromkeys(("worst", "worst_5", "worst_10", "worst_20"), 0.2),
            **dict.fromkeys(("best", "best_5", "best_10", "best_20"), 0.8),
            "jain_index": 4.0 / (4 * 1.2),  # (Σx)² = 4, Σx² = 0.16 + 0.64 + 0.36 + 0.04
            "entropy": -sum(share * math.log(share) for share in (0.2, 0.4, 0.3, 0.1)),
            "angle": math.degrees(math.acos(2.0 / (2.0 * math.sqrt(1.2)))),
        }
    )


def test_standard_deviation_divides_by_one_client_less_unless_told() -> None:
    assert fairness.standard_deviation([0.7, 0.9]) == pytest.approx(math.sqrt(0.02))
    assert fairness.standard_deviation([0.7, 0.9], ddof=0) == pytest.approx(0.1)
    assert fairness.fairness_report([0.7, 0.9], ddof=0).std == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("values", "percent", "lowest", "highest"),
    [
        ([0.5, 0.1, 0.9], 0, 0.1, 0.9),
        ([0.5, 0.1, 0.9, 0.3, 0.7], 10, 0.1, 0.9),
        (range(1, 12), 20, 2.0, 10.0),  # of 11 clients 2.2, so 3: a started client counts whole
        *((range(100), percent, (percent - 1) / 2, 99 - (percent - 1) / 2) for percent in (7, 100)),
    ],
)
def test_tails_are_means_of_whole_clients_at_least_one(
    values: Any, percent: float, lowest: float, highest: float
) -> None:
    assert fairness.worst(list(values), percent) == pytest.approx(lowest)
    assert fairness.best(list(values), percent) == pytest.approx(highest)


def test_jain_index_and_entropy_are_those_of_the_clients_served() -> None:
    assert fairness.jain_index([0.6, 0.0, 0.6, 0.0, 0.6]) == pytest.approx(3 / 5)
    assert fairness.entropy([0.5, 0.0, 0.5]) == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("values", "degrees"),
    [
        ([1, 0], 45.0),
        ([0.3, 0.3 * math.tan(math.radians(75))], 30.0),
        ([2, 2, 0, 0], 45.0),
        ([1 - 1e-9, 1 + 1e-9], math.degrees(1e-9)),  # a tiny angle keeps its digits
    ],
)
def test_angle_is_in_degrees(values: list[float], degrees: float) -> None:
    assert fairness.angle(values) == pytest.approx(degrees)


def test_report_holds_plain_numbers_that_json_takes() -> None:
    report = fairness.fairness_report(np.array([0.5, 0.6], dtype=np.float32))
    figures = report.to_dict()
    assert {type(value) for value in figures.values()} == {int, float}
    assert json.loads(json.dumps(figures)) == figures


@pytest.mark.parametrize("values", [(0.8, 0.2), np.array([0.8, 0.2]), [4, 1], np.array([4, 1])])
def test_any_array_of_numbers_will_do_and_is_left_as_it_was(values: Any) -> None:
    before = list(values)
    assert fairness.jain_index(values) == pytest.approx(25 / 34)
    assert list(values) == before


# --- Plain functions: degenerate and bad input -----------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 5e-324, sys.float_info.max])
@pytest.mark.parametrize("count", [1, 7])
def test_equal_clients_are_served_fairly_at_any_height(value: float, count: int) -> None:
    report = fairness.fairness_report([value] * count)
    assert {report.mean, report.worst, report.best, report.worst_20, report.best_20} == {value}
    assert (report.std, report.jain_index, report.angle) == (0.0, 1.0, 0.0)
    assert report.entropy == pytest.approx(math.log(count))


def test_values_of_either_sign_have_a_spread() -> None:
    values = [-0.5, 0.5, 0.3]
    assert fairness.mean(values) == pytest.approx(0.1)
    assert fairness.standard_deviation(values) == pytest.approx(math.sqrt(0.56 / 2))
    assert (fairness.worst(values), fairness.best(values)) == (-0.5, 0.5)


@pytest.mark.parametrize("metric", [*SHARE_METRICS, fairness.fairness_report])
def test_shares_of_negative_values_are_refused(metric: Any) -> None:
    with pytest.raises(ValueError, match=r"-0\.2 at position 1: measure something"):
        metric([0.5, -0.2, 0.3])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], r"n ≥ 1, but got the shape \(0,\)"),
        ([0.5, math.nan, 0.5, math.inf], "nan at position 1, inf at position 3: look at"),
        ([math.nan] * 8, r"at position 4, \.\.\.: look at"),
        ([[0.5, 0.6], [0.7, 0.8]], r"shape \(2, 2\) of type float64: pass one row or column"),
        (0.5, r"shape \(\) "),
        ([[0.5], [0.6, 0.7]], "inhomogeneous shape"),
        ([0.5, None], r"type object: .* convert the values with float\(\)"),
        (["0.5", "0.6"], "type <U3"),
        ([0.5 + 0j], "type complex128"),
    ],
)
def test_what_is_no_value_per_client_is_refused(metric: Any, values: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        metric(values)


@pytest.mark.parametrize("percent", [-1, 100.1, math.nan])
def test_a_share_of_clients_outside_0_to_100_and_an_odd_ddof_are_refused(percent: float) -> None:
    for tail in (fairness.worst, fairness.best):
        with pytest.raises(ValueError, match="from 0 to 100"):
            tail([0.5], percent)
    with pytest.raises(ValueError, match="choose 0 or 1"):
        fairness.standard_deviation([0.5, 0.6], ddof=2)


def test_importing_the_module_imports_neither_pytorch_nor_flower() -> None:
    code = (
        "import json, sys; from fedpw_flwr import fairness; fairness.fairness_report([0.5]);"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert not {"torch", "flwr"} & set(json.loads(done.stdout))


# --- Plain functions: properties -------------------------------------------------------------


@given(accuracies, st.randoms())
def test_order_of_clients_does_not_matter(values: list[float], random: Any) -> None:
    shuffled = random.sample(values, len(values))
    assert fairness.fairness_report(shuffled) == fairness.fairness_report(values)


@given(non_negative)
def test_shares_stay_in_their_ranges(values: list[float]) -> None:
    report, count = fairness.fairness_report(values), len(values)
    assert 1 / count <= report.jain_index * (1 + 1e-12)
    assert report.jain_index <= 1
    assert 0 <= report.entropy <= math.log(count)
    assert 0 <= report.angle < 90
    assert all(math.isfinite(figure) for figure in report.to_dict().values())


@given(accuracies)
def test_more_clients_make_a_tail_milder(values: list[float]) -> None:
    report = fairness.fairness_report(values)
    rising = [
        *(report.worst, report.worst_5, report.worst_10, report.worst_20, report.mean),
        *(report.best_20, report.best_10, report.best_5, report.best),
    ]
    for lower, higher in itertools.pairwise(rising):
        assert lower <= higher + 1e-12
    assert (report.worst, report.best) == (min(values), max(values))


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=30), st.floats(1e-6, 1e6))
def test_scaling_leaves_the_shares_and_scales_the_rest(values: list[float], factor: float) -> None:
    report = fairness.fairness_report(values)
    scaled = fairness.fairness_report([factor * value for value in values])
    shares = ("clients", "jain_index", "entropy", "angle")
    expected = {
        name: figure if name in shares else factor * figure
        for name, figure in report.to_dict().items()
    }
    assert scaled.to_dict() == pytest.approx(expected, rel=1e-6, abs=1e-9 * factor + 1e-9)


@given(accuracies)
def test_jain_index_is_the_squared_cosine_of_the_angle(values: list[float]) -> None:
    cosine = math.cos(math.radians(fairness.angle(values)))
    assert fairness.jain_index(values) == pytest.approx(cosine**2)


# --- Inside strategies -----------------------------------------------------------------------


ROUND: list[dict[str, Any]] = [
    {"num-examples": 10, "eval_acc": 0.9, "eval_loss": 0.1},
    {"num-examples": 30, "eval_acc": 0.5, "eval_loss": 0.7},
]


def contents(*replies: Mapping[str, Any]) -> list[RecordDict]:
    return [RecordDict({"metrics": MetricRecord(dict(reply))}) for reply in replies]


def messages(*replies: Mapping[str, Any]) -> list[Message]:
    return [
        Message(content, reply_to=Message(RecordDict(), dst_node_id=node, message_type="evaluate"))
        for node, content in enumerate(contents(*replies), start=2)
    ]


def results(*replies: Mapping[str, Any]) -> list[tuple[ClientProxy, EvaluateRes]]:
    nobody: Any = None  # strategies ask nothing of a client that has answered
    told = [(reply["num-examples"], {**reply}) for reply in replies]
    for _, metrics in told:
        del metrics["num-examples"]
    return [
        (nobody, EvaluateRes(Status(Code.OK, ""), 0.5, examples, metrics))
        for examples, metrics in told
    ]


def message_metrics(metric: str, *replies: Mapping[str, Any]) -> dict[str, Any]:
    aggregate = fairness.evaluate_metrics_aggr_fn(metric)
    return dict(aggregate(contents(*replies), "num-examples"))


def legacy_metrics(metric: str, *replies: Mapping[str, Any]) -> dict[str, Scalar]:
    aggregate = fairness.evaluate_metrics_aggregation_fn(metric)
    return aggregate([(res.num_examples, res.metrics) for _, res in results(*replies)])


BOTH = pytest.mark.parametrize("aggregate", [message_metrics, legacy_metrics])


@pytest.mark.parametrize("strategy", [FedAvg, FedPW])
def test_message_strategies_report_averages_and_fairness(strategy: Any) -> None:
    aggr_fn = fairness.evaluate_metrics_aggr_fn("eval_acc")
    metrics = strategy(evaluate_metrics_aggr_fn=aggr_fn).aggregate_evaluate(1, messages(*ROUND))
    assert metrics["eval_acc"] == pytest.approx(0.6)  # (10·0.9 + 30·0.5) / 40
    assert metrics["eval_loss"] == pytest.approx(0.55)
    assert metrics["fairness-clients"] == 2
    assert metrics["fairness-mean"] == pytest.approx(0.7)
    assert metrics["fairness-std"] == pytest.approx(math.sqrt(0.08))
    assert (metrics["fairness-worst"], metrics["fairness-best"]) == (0.5, 0.9)
    assert metrics["fairness-jain-index"] == pytest.approx(1.96 / (2 * 1.06))


def test_a_legacy_strategy_reports_averages_and_fairness() -> None:
    strategy = LegacyFedAvg(
        evaluate_metrics_aggregation_fn=fairness.evaluate_metrics_aggregation_fn("eval_acc")
    )
    loss, metrics = strategy.aggregate_evaluate(1, results(*ROUND), [])
    assert loss == pytest.approx(0.5)
    assert metrics["eval_acc"] == pytest.approx(0.6)
    assert metrics["fairness-mean"] == pytest.approx(0.7)
    assert metrics["fairness-worst-10"] == 0.5


@BOTH
def test_every_figure_of_the_report_has_its_entry(aggregate: Any) -> None:
    metrics = aggregate("eval_acc", *ROUND)
    assert list(metrics) == ["eval_acc", "eval_loss", *(f"fairness-{name}" for name in NAMES)]
    report = fairness.fairness_report([0.9, 0.5]).to_dict()
    assert [metrics[f"fairness-{name}"] for name in NAMES] == list(report.values())


def test_the_averages_are_flowers_bit_for_bit() -> None:
    rng = np.random.default_rng(5)
    replies = [
        {"num-examples": int(rng.integers(1, 99)), "eval_acc": rng.random(), "per-class": [0.1, i]}
        for i in rng.random(9).tolist()
    ]
    default = FedAvg().aggregate_evaluate(1, messages(*replies))
    assert default is not None
    metrics = message_metrics("eval_acc", *replies)
    assert {key: metrics[key] for key in default} == dict(default)
    assert dict(aggregate_metricrecords(contents(*replies), "num-examples")) == dict(default)


def test_the_message_api_weights_by_the_key_it_is_given() -> None:
    aggregate = fairness.evaluate_metrics_aggr_fn("eval_acc")
    replies = contents({"eval_acc": 0.2, "trust": 1.0}, {"eval_acc": 0.6, "trust": 3.0})
    metrics = aggregate(replies, "trust")
    assert metrics["eval_acc"] == pytest.approx(0.5)
    assert "trust" not in metrics


@BOTH
def test_clients_without_the_metric_are_left_out_and_the_others_counted(aggregate: Any) -> None:
    metrics = aggregate("eval_acc", *ROUND, {"num-examples": 5, "eval_loss": 0.4, "f1": 0.3})
    # Nor is averaged what some clients lack.
    assert not {"eval_acc", "f1"} & metrics.keys()
    assert metrics["eval_loss"] == pytest.approx((1 + 21 + 2) / 45)
    assert metrics["fairness-clients"] == 2
    assert metrics["fairness-worst"] == 0.5


@BOTH
def test_a_metric_that_no_client_reports_is_an_error_naming_those_they_do(aggregate: Any) -> None:
    with pytest.raises(ValueError, match=r"no client reported 'accuracy' as a number") as caught:
        aggregate("accuracy", *ROUND)
    assert "or name one of ['eval_acc', 'eval_loss', 'num-examples']" in str(caught.value)


def test_lists_are_averaged_where_their_lengths_agree() -> None:
    replies = [
        {"num-examples": 1, "acc": 0.5, "per-class": [0.2, 0.4], "per-batch": [1.0]},
        {"num-examples": 1, "acc": 0.5, "per-class": [0.4, 0.8], "per-batch": [1.0, 2.0]},
    ]
    metrics = message_metrics("acc", *replies)
    assert metrics["per-class"] == pytest.approx([0.3, 0.6])
    assert "per-batch" not in metrics
    with pytest.raises(ValueError, match=r"no client reported 'per-class' as a number"):
        message_metrics("per-class", *replies)


@BOTH
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, -0.1])
def test_a_client_whose_value_is_not_finite_or_negative_is_left_out(
    aggregate: Any, broken: float
) -> None:
    metrics = aggregate(
        "eval_acc", *ROUND, {"num-examples": 5, "eval_acc": broken, "eval_loss": 1.0}
    )
    assert metrics == aggregate("eval_acc", *ROUND)
    with pytest.raises(ValueError, match=r"metric 'eval_acc' of 1 clients: .* at position 0"):
        aggregate("eval_acc", {"num-examples": 5, "eval_acc": broken})


@BOTH
@pytest.mark.parametrize("accuracy", [0.0, math.nan])
def test_a_client_that_evaluated_on_nothing_counts_for_nothing(
    aggregate: Any, accuracy: float
) -> None:
    idle = {"num-examples": 0, "eval_acc": accuracy, "eval_loss": accuracy}
    assert aggregate("eval_acc", *ROUND, idle) == aggregate("eval_acc", *ROUND)
    assert aggregate("eval_acc", idle) == aggregate("eval_acc") == {}


def test_a_later_round_without_anything_to_judge_has_its_averages() -> None:
    judge = fairness.evaluate_metrics_aggr_fn("eval_acc")
    odd = contents({"num-examples": 3, "eval_loss": 0.4})
    with pytest.raises(ValueError, match="no client reported"):
        judge(odd, "num-examples")
    assert "fairness-mean" in judge(contents(*ROUND), "num-examples")
    assert dict(judge(odd, "num-examples")) == {"eval_loss": 0.4}


def test_a_reply_without_its_weight_is_an_error_naming_what_it_has() -> None:
    with pytest.raises(ValueError, match=r"'num-examples' = None among \['eval_acc'\]"):
        message_metrics("eval_acc", {"eval_acc": 0.5})


@BOTH
@pytest.mark.parametrize("weight", [-1, math.nan, math.inf])
def test_what_cannot_weight_an_average_is_an_error(aggregate: Any, weight: float) -> None:
    with pytest.raises(ValueError, match="cannot weight an average"):
        aggregate("eval_acc", *ROUND, {"num-examples": weight, "eval_acc": 0.5})


def test_replies_are_left_as_they_were() -> None:
    replies = contents(*ROUND)
    fairness.evaluate_metrics_aggr_fn("eval_acc")(replies, "num-examples")
    assert [dict(reply["metrics"]) for reply in replies] == ROUND


def test_legacy_metrics_that_are_no_numbers_are_left_out() -> None:
    odd = {"device": "gpu", "blob": b"\x00", "converged": True}
    metrics = legacy_metrics("eval_acc", *({**reply, **odd} for reply in ROUND))
    assert metrics == legacy_metrics("eval_acc", *ROUND)
    with pytest.raises(ValueError, match="no client reported 'converged' as a number"):
        legacy_metrics("converged", {"num-examples": 1, **odd})


def test_legacy_clients_of_a_simulation_may_report_numpy_scalars() -> None:
    scalars = [
        {
            "num-examples": np.int64(reply["num-examples"]),
            "eval_acc": np.float32(reply["eval_acc"]),
            "eval_loss": np.float64(reply["eval_loss"]),
        }
        for reply in ROUND
    ]
    metrics = legacy_metrics("eval_acc", *scalars)
    assert metrics == pytest.approx(legacy_metrics("eval_acc", *ROUND), rel=1e-6)
    assert {type(value) for value in metrics.values()} == {int, float}


def test_a_strategy_given_the_function_itself_fails_instead_of_reporting_it() -> None:
    legacy: Any = fairness.evaluate_metrics_aggregation_fn
    with pytest.raises(TypeError, match=r"fn=fairness\.evaluate_metrics_aggregation_fn\('accu"):
        LegacyFedAvg(evaluate_metrics_aggregation_fn=legacy).aggregate_evaluate(
            1, results(*ROUND), []
        )
    message: Any = fairness.evaluate_metrics_aggr_fn
    with pytest.raises(TypeError, match=r"evaluate_metrics_aggr_fn\(\) takes 1 positional"):
        FedAvg(evaluate_metrics_aggr_fn=message).aggregate_evaluate(1, messages(*ROUND))
