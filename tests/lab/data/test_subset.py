from __future__ import annotations

import pytest

from fedpw_flwr.lab.data.images import DomainCollection
from fedpw_flwr.lab.data.subset import at_most


def test_no_limit_keeps_the_very_same_pictures(digits: DomainCollection) -> None:
    test = digits.domains[0].test
    assert at_most(test, None) is test
    assert at_most(test, 200) is test


def test_no_picture_is_drawn_twice(digits: DomainCollection) -> None:
    drawn = at_most(digits.domains[3].test, 150)
    assert len({picture.numpy().tobytes() for picture in drawn.images}) == 150


def test_limit_below_one_is_refused(digits: DomainCollection) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        at_most(digits.domains[0].test, 0)
