"""Impossible settings fail at construction, say what is wrong, and touch nothing."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from support.grid import ClientsGrid
from support.records import array_record
from support.small_model import MODEL, good_client

from fedpw_flwr import FedPW

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
NO_MPS = pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")


CHOICES_OF_DTYPE = "upload_dtype={}: choose 'float32' or 'float16' or 'bfloat16'"
PACKED = {"adjustment": "client", "upload": "packed"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"avg_drop_rate": 1.0}, ValueError, "[0, 1)"),
        ({"avg_drop_rate": "0.3"}, TypeError, "avg_drop_rate"),
        ({"beta": 0}, ValueError, "(0, 1]"),
        ({"beta": float("nan")}, ValueError, "(0, 1]"),
        ({"beta": True}, TypeError, "beta"),
        ({"clip_weights": "no"}, TypeError, "clip_weights"),
        ({"adapt_weights": 1}, TypeError, "adapt_weights"),
        ({"adjust_parameters": None}, TypeError, "adjust_parameters"),
        ({"trainable": []}, ValueError, "trainable"),
        ({"trainable": "w"}, TypeError, "trainable"),
        ({"trainable": ["w", "w"]}, ValueError, "trainable"),
        ({"train_loss_key": ""}, ValueError, "train_loss_key"),
        ({"device": "nonsense"}, ValueError, "nonsense"),
        pytest.param({"device": "cuda"}, ValueError, "cuda", marks=NO_CUDA),
        pytest.param({"device": "cuda:7"}, ValueError, "cuda", marks=NO_CUDA),
        pytest.param({"device": "mps"}, ValueError, "mps", marks=NO_MPS),
        ({"device": "meta"}, ValueError, "meta"),
        ({"adjustment": "x"}, ValueError, "adjustment='x': choose 'server' or 'client'"),
        ({"adjustment": None}, ValueError, "adjustment=None: choose 'server' or 'client'"),
        ({"adjustment": ["client"]}, ValueError, "adjustment=['client']: choose"),
        ({**PACKED, "upload": "x"}, ValueError, "upload='x': choose 'dense' or 'packed'"),
        ({**PACKED, "upload_dtype": "int8"}, ValueError, CHOICES_OF_DTYPE.format("'int8'")),
        ({"upload": "packed"}, ValueError, 'needs adjustment="client"'),
        (
            {**PACKED, "adjust_parameters": False},
            ValueError,
            'needs adjustment="client" and adjust_parameters=True',
        ),
        (
            {"adjustment": "client", "upload_dtype": "float16"},
            ValueError,
            'add upload="packed"',
        ),
        ({"betta": 0.3}, TypeError, "betta"),
        ({"wait_for_clients": True}, TypeError, "wait_for_clients must be seconds"),
    ],
    ids=str,
)
def test_impossible_setting_is_refused_with_what_is_allowed(
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    flower_log: pytest.LogCaptureFixture,
) -> None:
    # fraction_train=0 makes FedAvg's constructor log: nothing may happen before the refusal.
    with pytest.raises(error, match=re.escape(message)):
        FedPW(fraction_train=0.0, **options)
    assert not flower_log.records


@pytest.mark.parametrize(
    ("trainable", "error", "message"),
    [
        (["body.weight", "head.weight"], ValueError, "head.weight"),
        (["norm.num_batches_tracked"], TypeError, "num_batches_tracked"),
    ],
)
def test_trainable_that_the_model_contradicts_fails_before_a_node_is_asked(
    trainable: list[str], error: type[Exception], message: str
) -> None:
    grid = ClientsGrid(dict.fromkeys([1, 2, 3], good_client))
    strategy = FedPW(trainable=trainable)
    with pytest.raises(error, match=message):
        strategy.configure_train(1, array_record(MODEL), ConfigRecord(), grid)
    assert grid.times_asked_for_nodes == 0
    assert not grid.sent


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e30])
def test_model_no_reply_could_match_is_refused_before_a_node_is_asked(value: float) -> None:
    # Its clients would all send the same entry back, and be quarantined for it in every round.
    mask = np.array([0.0, value], dtype=np.float32)
    grid = ClientsGrid(dict.fromkeys([1, 2, 3], good_client))
    with pytest.raises(ValueError, match=r"attention\.mask"):
        FedPW().configure_train(
            1, array_record({**MODEL, "attention.mask": mask}), ConfigRecord(), grid
        )
    assert not grid.sent


def test_trainable_chooses_what_the_direction_looks_at() -> None:
    def first_round(trainable: list[str] | None) -> list[float]:
        grid = ClientsGrid(dict.fromkeys([1, 2, 3], good_client))
        strategy = FedPW(trainable=trainable)
        result = strategy.start(grid=grid, initial_arrays=array_record(MODEL), num_rounds=1)
        return list(result.train_metrics_clientapp[1]["fedpw-p"])

    by_rule = first_round(None)
    assert first_round(["body.bias", "body.weight"]) == by_rule
    assert first_round(["body.bias"]) != by_rule
