from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fedpw_flwr.lab.models.resnet import ResNet10
from fedpw_flwr.lab.training.model_arrays import overwrite_model, read_model


def _arrays(model: torch.nn.Module) -> list[np.ndarray]:
    return [tensor.numpy().copy() for tensor in model.state_dict().values()]


def test_a_model_is_overwritten_in_place_and_read_back_bit_for_bit() -> None:
    model, other = ResNet10(10, width=2), ResNet10(10, width=2)
    sent = _arrays(other)
    addresses = [tensor.data_ptr() for tensor in model.state_dict().values()]
    overwrite_model(model, sent)
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == addresses
    for array, expected in zip(read_model(model), sent, strict=True):
        assert array.dtype == expected.dtype
        assert array.shape == expected.shape
        assert array.flags.c_contiguous
        assert array.tobytes() == expected.tobytes()
    # What was sent does not change with the model.
    before = sent[0].copy()
    model.stem.weight.data.add_(1)
    assert np.array_equal(sent[0], before)


def test_arrays_of_another_number_or_shape_are_refused_and_change_nothing() -> None:
    model = ResNet10(10, width=2)
    before = _arrays(model)
    sent = [array + 1 for array in before]
    name = list(model.state_dict())[-1]
    with pytest.raises(ValueError, match="the message brought 73"):
        overwrite_model(model, sent[:-1])
    sent[-1] = sent[-1][:1]
    with pytest.raises(ValueError, match=re.escape(f"{name} has the shape (10,)")):
        overwrite_model(model, sent)
    assert all(np.array_equal(a, b) for a, b in zip(_arrays(model), before, strict=True))
