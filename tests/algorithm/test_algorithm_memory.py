"""The method's memory survives being saved, loaded and compared."""

import json
import math
from typing import Any

import pytest

from fedpw_flwr.algorithm import ClientSignal, SignalState, WeightingState


@pytest.fixture
def state() -> WeightingState:
    signal = SignalState(
        clients={
            3: ClientSignal(1 / 3, -0.1, 0.51, log_kept=-1.1, log_held=-1e-17),
            2**62: ClientSignal(5e-324, 1e300, 1.0, log_kept=0.0, log_held=-3e5),
        },
        first_size=0.1 + 0.2,
        log_kept=-2.2,
        log_held=-1 / 3,
    )
    return WeightingState(rounds=7, direction=signal, loss=SignalState())


def test_a_state_survives_json_to_the_last_bit(state: WeightingState) -> None:
    assert WeightingState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_a_memory_that_counted_visits_is_refused_with_what_to_do(state: WeightingState) -> None:
    for clients in ({"3": {"share": 1.0, "momentum": 0.3, "mass": 0.3}}, {}):
        nested = state.to_dict()
        nested["direction"] = {"clients": clients, "first_size": 1.0}
        with pytest.raises(
            ValueError, match="counts visits, as earlier versions did, and not rounds"
        ):
            WeightingState.from_dict(nested)


MISSING = object()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(((part,), MISSING) for part in ("rounds", "direction", "loss")),
        (("rounds",), "seven"),
        (("direction",), []),
        (("direction", "clients"), [1, 2]),
        (("direction", "clients", "3"), None),
        (("direction", "clients", "3"), [1.0, 0.3, 0.3, 0.0]),
        (("direction", "clients", "3", 0), "much"),
        (("direction", "clients", "3", 1), math.nan),
        (("direction", "clients", "3"), [1.0, 0.3, True, 0.0, 0.0]),
        (("direction", "clients", "someone"), [1.0, 0.3, 0.3, 0.0, 0.0]),
        (("loss", "first_size"), "large"),
    ],
)
def test_a_saved_state_with_something_else_than_a_number_is_refused(
    state: WeightingState, path: tuple[str | int, ...], value: object
) -> None:
    nested: Any = state.to_dict()
    inner = nested
    for key in path[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    with pytest.raises(ValueError, match=f"not a saved weighting state.*{path[0]}"):
        WeightingState.from_dict(nested)


@pytest.mark.parametrize("nested", [[], "state", 3, None])
def test_something_that_is_no_state_at_all_is_refused(nested: Any) -> None:
    with pytest.raises(ValueError, match="not a saved weighting state"):
        WeightingState.from_dict(nested)
