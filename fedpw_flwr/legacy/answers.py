"""What a legacy server hands its strategy, as answers and metrics that a `Driver` takes."""

from __future__ import annotations

import json
import math
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any

from flwr.app import ArrayRecord, MetricRecord, MetricRecordValues, RecordDict
from flwr.common import EvaluateRes, FitRes, Parameters, Scalar
from flwr.server.client_proxy import ClientProxy

from fedpw_flwr.rounds.replies import Answer
from fedpw_flwr.wire.adjustment import REPORT_KEY
from fedpw_flwr.wire.arrays import array_of_npy
from fedpw_flwr.wire.records import records_of_metrics

_TENSOR_TYPE = "numpy.ndarray"
EXAMPLES_KEY = "num-examples"

# Records that a reply or a message lacks, as exceptions, tracebacks and SuperNodes tell it, and
# what FedPW's own bridge and mod say.
_OF_FUNCTIONS = re.compile(
    r"KeyError(: '|'>:<'')(arrays'|config'|fitres\.|fitins\.)|the server runs a legacy strategy"
)


def as_parameters(arrays: ArrayRecord) -> Parameters:
    """Return arrays as this API sends them, without copying them."""
    return Parameters(tensors=[array.data for array in arrays.values()], tensor_type=_TENSOR_TYPE)


def named_model(parameters: Parameters, names: Sequence[str]) -> ArrayRecord:
    """Return the global model's parameters as arrays by name (index where there are no names).

    ValueError if there are none, they are no NumPy arrays, or the names are not as many.
    """
    count = len(parameters.tensors)
    if parameters.tensor_type != _TENSOR_TYPE or not count:
        raise ValueError(
            f"the global model has {count} tensors of the type {parameters.tensor_type!r}: give "
            "FedPW(initial_parameters=ndarrays_to_parameters(arrays)), or let the clients "
            "implement get_parameters"
        )
    if names and len(names) != count:
        raise ValueError(
            f"array_names has {len(names)} names, the model {count} arrays: name every one, in the "
            "order of the parameters"
        )
    return named_arrays(parameters, names)


def fit_content(result: FitRes, names: Sequence[str]) -> RecordDict:
    """Return a training result as records."""
    content = records_of_metrics({**result.metrics, EXAMPLES_KEY: result.num_examples})
    content["arrays"] = named_arrays(result.parameters, names)
    return content


def named_arrays(parameters: Parameters, names: Sequence[str]) -> ArrayRecord:
    """See parameters as arrays by name, without copying them."""
    arrays = {}
    for index, data in enumerate(parameters.tensors):
        surplus = f"surplus array {index}" if names else str(index)
        name = names[index] if index < len(names) else surplus
        arrays[name] = array_of_npy(data, parameters.tensor_type)
    return ArrayRecord(arrays)


def evaluation_content(result: EvaluateRes) -> RecordDict:
    """Return an evaluation result as records."""
    own = {"loss": result.loss, EXAMPLES_KEY: result.num_examples}
    return records_of_metrics({**result.metrics, **own})


def as_scalars(metrics: Mapping[str, MetricRecordValues]) -> dict[str, Scalar]:
    """Write lists as JSON texts: this API takes no lists."""
    return {
        key: json.dumps(value) if isinstance(value, list) else value
        for key, value in metrics.items()
    }


def as_metrics(scalars: Mapping[str, Any] | None) -> MetricRecord | None:
    """Return numbers as a record, and lists that `as_scalars` wrote; no other texts."""
    if scalars is None:
        return None
    metrics = MetricRecord()
    for key, value in scalars.items():
        with suppress(TypeError, ValueError):
            metrics[key] = json.loads(value) if isinstance(value, str) else value
    return metrics


def shared_metrics(results: Sequence[FitRes]) -> list[tuple[int, dict[str, Scalar]]]:
    """Reduce the metrics to those that all clients report, with finite numbers."""
    shared = [
        key
        for key in (results[0].metrics if results else ())
        if key != REPORT_KEY and all(_is_finite(result.metrics.get(key)) for result in results)
    ]
    return [
        (result.num_examples, {key: result.metrics[key] for key in shared}) for result in results
    ]


def _is_finite(value: Scalar | None) -> bool:
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def answers_of(
    results: Sequence[tuple[ClientProxy, Any]],
    failures: Sequence[tuple[ClientProxy, Any] | BaseException],
    asked: frozenset[int],
    content_of: Callable[[Any], RecordDict],
) -> list[Answer]:
    """Turn results and failures into answers, each of the node that it came from.

    Flower does not say whose an exception is. Where nothing else tells, it may be any of the nodes
    that were asked and are missing.
    """
    answers, nameless = [Answer(proxy.node_id, content_of(one)) for proxy, one in results], []
    for failure in failures:
        if isinstance(failure, BaseException):
            node, reason = _node_of(failure), f"{type(failure).__name__}: {failure}"
        else:
            node, reason = failure[0].node_id, f"{failure[1].status.message}"
        if node is None:
            nameless.append(reason)
        else:
            answers.append(Answer(node, None, reason))
    nodes = sorted(asked - {answer.node_id for answer in answers})
    who = "" if len(nodes) == 1 else f"one of the nodes {nodes or 'asked'}: "
    for told, node in zip_longest(nameless, nodes[: len(nameless)], fillvalue=0):
        answers.append(Answer(node, None, f"{who}{told}"))
    return answers


def _node_of(failure: BaseException) -> int | None:
    """Return the node whose proxy an exception passed through on its way to Flower's server."""
    for frame, _ in traceback.walk_tb(failure.__traceback__):
        proxy = frame.f_locals.get("self")
        if isinstance(proxy, ClientProxy):
            return proxy.node_id
    return None


def refuse_client_app_functions(
    results: Sequence[object], failures: Sequence[tuple[ClientProxy, Any] | BaseException]
) -> None:
    """Notice clients that a legacy server cannot talk to: ``@app.train`` functions.

    RuntimeError if every client failed, and in the way in which those functions fail.
    """
    # A result with a status that is not OK comes from a Client of the legacy API.
    if results or not all(isinstance(failure, BaseException) for failure in failures):
        return
    text = [f"{type(failure).__name__}: {failure}" for failure in failures]
    if text and all(_OF_FUNCTIONS.search(line) for line in text):
        raise RuntimeError(
            "the clients are ClientApp functions (@app.train), which Flower's legacy server cannot "
            "talk to: run `from fedpw_flwr import FedPW` in a ServerApp with @app.main(), or give "
            "the clients a NumPyClient: ClientApp(client_fn=...). The first failure was: " + text[0]
        )
