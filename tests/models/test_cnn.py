from __future__ import annotations

import pytest

from fedpw_flwr.models.cnn import SmallCNN


def test_it_has_no_running_statistics() -> None:
    assert not list(SmallCNN(num_classes=10).buffers())


def test_size_of_the_network_does_not_depend_on_the_picture() -> None:
    model = SmallCNN(num_classes=10, in_channels=3, width=32)
    assert sum(parameter.numel() for parameter in model.parameters()) == 151_882


def test_width_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        SmallCNN(num_classes=10, width=0)
