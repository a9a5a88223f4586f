from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpw_flwr.lab.models.normalisation import groups_of, normalisation_layer


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (2, 1), (3, 1), (5, 1), (6, 2), (12, 4), (16, 8), (32, 16), (64, 32), (512, 32)],
)
def test_number_of_groups_is_as_documented(channels: int, groups: int) -> None:
    assert groups_of(channels) == groups


@given(st.integers(2, 2048))
def test_groups_divide_the_channels_and_hold_two_or_more(channels: int) -> None:
    groups = groups_of(channels)
    assert groups <= 32
    assert channels % groups == 0
    assert channels // groups >= 2


def test_an_unknown_layer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="normalisation must be one of batch, group, none, got"):
        normalisation_layer("layer")
