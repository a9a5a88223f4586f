"""Settings refuse what cannot work, with the allowed range in the message."""

import math

import pytest

from fedpw_flwr.algorithm import FedPWSettings


def test_defaults_are_the_papers() -> None:
    settings = FedPWSettings()
    assert settings.avg_drop_rate == 0.3
    assert settings.beta == 0.3
    assert settings.clip_weights
    assert settings.adapt_weights
    assert settings.adjust_parameters
    assert settings.trainable is None


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, math.nan, math.inf, -math.inf])
def test_impossible_drop_rate_is_refused_with_the_allowed_range(rate: float) -> None:
    with pytest.raises(ValueError, match=r"avg_drop_rate=.*\[0, 1\)"):
        FedPWSettings(avg_drop_rate=rate)


@pytest.mark.parametrize("beta", [0, 0.0, -0.3, 1.01, math.nan, math.inf])
def test_impossible_momentum_is_refused_with_the_allowed_range(beta: float) -> None:
    with pytest.raises(ValueError, match=r"beta=.*\(0, 1\]"):
        FedPWSettings(beta=beta)


@pytest.mark.parametrize(("rate", "beta"), [(0, 1), (0.0, 1.0), (0.999, 1e-9)])
def test_both_ends_of_the_ranges_are_accepted(rate: float, beta: float) -> None:
    settings = FedPWSettings(avg_drop_rate=rate, beta=beta)
    assert (settings.avg_drop_rate, settings.beta) == (rate, beta)


@pytest.mark.parametrize("name", ["avg_drop_rate", "beta"])
@pytest.mark.parametrize("value", ["0.3", None, True, [0.3]])
def test_a_number_must_be_a_number(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=name):
        FedPWSettings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["clip_weights", "adapt_weights", "adjust_parameters"])
@pytest.mark.parametrize("value", ["False", 0, 1, None])
def test_a_switch_must_be_a_bool(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=name):
        FedPWSettings(**{name: value})  # type: ignore[arg-type]


def test_trainable_names_become_a_tuple_so_that_settings_compare_by_value() -> None:
    listed = FedPWSettings(trainable=["head.weight", "head.bias"])  # type: ignore[arg-type]
    assert listed.trainable == ("head.weight", "head.bias")
    assert listed == FedPWSettings(trainable=("head.weight", "head.bias"))


@pytest.mark.parametrize("names", ["head.weight", [1, 2], 3, {"head.weight"}])
def test_trainable_must_be_a_sequence_of_names(names: object) -> None:
    with pytest.raises(TypeError, match="trainable"):
        FedPWSettings(trainable=names)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [[], ["head.weight", "head.weight"]])
def test_empty_or_repeated_trainable_names_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="trainable"):
        FedPWSettings(trainable=names)  # type: ignore[arg-type]
