"""Which tensors train, which are only averaged, which count."""

import pytest
import torch

from fedpw_flwr.algorithm import TensorKind, classify_tensors
from fedpw_flwr.algorithm.tensors import working_dtype


def test_a_batch_norm_network_splits_into_its_three_kinds() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    kinds = classify_tensors({name: t.dtype for name, t in network.state_dict().items()})
    assert kinds == {
        "0.weight": TensorKind.TRAINABLE,
        "0.bias": TensorKind.TRAINABLE,
        "1.weight": TensorKind.TRAINABLE,
        "1.bias": TensorKind.TRAINABLE,
        "1.running_mean": TensorKind.BUFFER,
        "1.running_var": TensorKind.BUFFER,
        "1.num_batches_tracked": TensorKind.INTEGER,
    }
    assert list(kinds) == list(network.state_dict())


def test_a_bare_batch_norm_layer_has_buffers_too() -> None:
    kinds = classify_tensors({"running_mean": torch.float32, "running_var": torch.float32})
    assert set(kinds.values()) == {TensorKind.BUFFER}


def test_a_name_that_only_ends_alike_is_trainable() -> None:
    kinds = classify_tensors({"gate.my_running_mean": torch.float32})
    assert kinds == {"gate.my_running_mean": TensorKind.TRAINABLE}


def test_half_and_double_precision_are_trainable_and_bool_is_not() -> None:
    kinds = classify_tensors(
        {"a": torch.float16, "b": torch.float64, "c": torch.bfloat16, "d": torch.bool}
    )
    assert [kinds[name] for name in "abc"] == [TensorKind.TRAINABLE] * 3
    assert kinds["d"] is TensorKind.INTEGER


def test_named_tensors_override_the_rule_in_both_directions() -> None:
    dtypes = {"body": torch.float32, "bn.running_mean": torch.float32, "count": torch.int64}
    kinds = classify_tensors(dtypes, trainable=["bn.running_mean"])
    assert kinds == {
        "body": TensorKind.BUFFER,
        "bn.running_mean": TensorKind.TRAINABLE,
        "count": TensorKind.INTEGER,
    }


def test_an_unknown_trainable_name_is_named_beside_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"'haed'.*'head'"):
        classify_tensors({"head": torch.float32}, trainable=["haed"])


def test_an_integer_tensor_cannot_be_trainable() -> None:
    with pytest.raises(TypeError, match=r"'count'.*int64"):
        classify_tensors({"count": torch.int64}, trainable=["count"])


def test_complex_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match=r"'phase'.*complex64"):
        classify_tensors({"phase": torch.complex64})


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_arithmetic_runs_in_single_precision_or_better(
    stored: torch.dtype, computed: torch.dtype
) -> None:
    assert working_dtype(stored) == computed
