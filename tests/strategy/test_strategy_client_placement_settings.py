"""Settings of the placement that cannot work fail at construction and say what to do."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fedpw_flwr import FedPW


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"adjustment": "x"}, "adjustment='x': choose 'server' or 'client'"),
        ({"adjustment": ""}, "adjustment='': choose 'server' or 'client'"),
        ({"adjustment": None}, "adjustment=None: choose 'server' or 'client'"),
        ({"adjustment": True}, "adjustment=True: choose 'server' or 'client'"),
        ({"adjustment": "Client"}, "adjustment='Client': choose 'server' or 'client'"),
        ({"adjustment": ["client"]}, "adjustment=['client']: choose"),
        ({"adjustment": "client", "upload": "x"}, "upload='x': choose 'dense' or 'packed'"),
        ({"adjustment": "client", "upload": None}, "upload=None: choose 'dense' or 'packed'"),
        (
            {"adjustment": "client", "upload": "packed", "upload_dtype": "int8"},
            "upload_dtype='int8': choose 'float32' or 'float16' or 'bfloat16'",
        ),
        (
            {"adjustment": "client", "upload": "packed", "upload_dtype": None},
            "upload_dtype=None: choose",
        ),
        ({"upload": "packed"}, 'needs adjustment="client"'),
        ({"upload": "packed", "adjustment": "server"}, 'needs adjustment="client"'),
        (
            {"upload": "packed", "adjustment": "client", "adjust_parameters": False},
            'needs adjustment="client" and adjust_parameters=True',
        ),
        ({"adjustment": "client", "upload_dtype": "float16"}, 'add upload="packed"'),
        ({"adjustment": "client", "upload_dtype": "bfloat16"}, 'add upload="packed"'),
        ({"upload_dtype": "float16"}, 'add upload="packed"'),
    ],
)
def test_impossible_placement_is_refused_with_what_is_allowed(
    chosen: dict[str, Any], message: str, flower_log: pytest.LogCaptureFixture
) -> None:
    # fraction_train=0 makes FedAvg's constructor log: nothing may happen before the refusal.
    with pytest.raises(ValueError, match=re.escape(message)):
        FedPW(fraction_train=0.0, **chosen)
    assert not flower_log.records


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"adjustment": "server"},
        {"adjustment": "client"},
        {"adjustment": "client", "upload": "dense", "upload_dtype": "float32"},
        {"adjustment": "client", "upload": "packed"},
        {"adjustment": "client", "upload": "packed", "upload_dtype": "float16"},
        {"adjustment": "client", "upload": "packed", "upload_dtype": "bfloat16"},
        {"adjustment": "client", "adjust_parameters": False},
        {"adjustment": "client", "adapt_weights": False},
    ],
)
def test_possible_placement_is_what_was_chosen(chosen: dict[str, Any]) -> None:
    method = FedPW(**chosen).method
    assert method.adjustment == chosen.get("adjustment", "server")
    assert method.upload == chosen.get("upload", "dense")
    assert method.upload_dtype == chosen.get("upload_dtype", "float32")
    assert method.asks_by_client == (
        chosen.get("adjustment") == "client" and chosen.get("adjust_parameters", True)
    )


def test_placement_is_chosen_by_name_only() -> None:
    # FedAvg's ten positional arguments stay FedAvg's.
    with pytest.raises(TypeError, match="positional"):
        FedPW(*[1.0, 1.0, 2, 2, 2, "n", "arrays", "config", None, None, "client"])  # type: ignore
