"""Settings refuse what cannot work, with the allowed range in the message."""

import math

import pytest

from fedpw_flwr.algorithm import FedPWSettings


def test_defaults_are_the_papers() -> None:
    assert FedPWSettings() == FedPWSettings(
        avg_drop_rate=0.3, beta=0.3, clip_weights=True, adapt_weights=True, adjust_parameters=True
    )
    assert FedPWSettings().trainable is None


OUTSIDE: dict[str, tuple[list[float], str]] = {
    "avg_drop_rate": ([-0.1, 1.0, 1.5, math.nan, math.inf, -math.inf], r"\[0, 1\)"),
    "beta": ([0, 0.0, -0.3, 1.01, math.nan, math.inf], r"\(0, 1\]"),
    "max_weight": ([0.5, math.nan, math.inf], "from 1 on"),
    "max_loss_ratio": ([0.5, math.nan, math.inf], "from 1 on"),
}
OF_ANOTHER_TYPE: dict[str, list[object]] = {
    "avg_drop_rate": ["0.3", None, True, [0.3]],
    "beta": ["0.3", None, True],
    "max_weight": ["2", True],
    "max_loss_ratio": ["2", True],
    "clip_weights": ["False", 0, 1, None],
    "adapt_weights": ["False", 1],
    "adjust_parameters": ["False", None],
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_impossible_number_is_refused_with_the_allowed_range(name: str) -> None:
    values, allowed = OUTSIDE[name]
    for value in values:
        with pytest.raises(ValueError, match=rf"{name}=.*{allowed}"):
            FedPWSettings(**{name: value})


@pytest.mark.parametrize("name", OF_ANOTHER_TYPE)
def test_a_number_must_be_a_number_and_a_switch_a_bool(name: str) -> None:
    for value in OF_ANOTHER_TYPE[name]:
        with pytest.raises(TypeError, match=name):
            FedPWSettings(**{name: value})


@pytest.mark.parametrize(("rate", "beta"), [(0, 1), (0.0, 1.0), (0.999, 1e-9)])
def test_both_ends_of_the_ranges_are_accepted(rate: float, beta: float) -> None:
    settings = FedPWSettings(avg_drop_rate=rate, beta=beta)
    assert (settings.avg_drop_rate, settings.beta) == (rate, beta)


def test_trainable_names_become_a_tuple_so_that_settings_compare_by_value() -> None:
    listed = FedPWSettings(trainable=["head.weight", "head.bias"])
    assert listed.trainable == ("head.weight", "head.bias")
    assert listed == FedPWSettings(trainable=("head.weight", "head.bias"))


@pytest.mark.parametrize("names", ["head.weight", [1, 2], 3, {"head.weight"}])
def test_trainable_must_be_a_sequence_of_names(names: object) -> None:
    with pytest.raises(TypeError, match="trainable"):
        FedPWSettings(trainable=names)


@pytest.mark.parametrize("names", [[], ["head.weight", "head.weight"]])
def test_empty_or_repeated_trainable_names_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="trainable"):
        FedPWSettings(trainable=names)
