"""Which tensors train, which are only averaged, which count."""

import pytest
import torch

from fedpw_flwr.algorithm import TensorKind, classify_tensors


def test_a_batch_norm_network_splits_into_its_three_kinds() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    kinds = classify_tensors(dict(network.state_dict()))
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


@pytest.mark.parametrize(
    "name",
    [
        "batch_normalization_3/moving_mean:0",
        "conv_block/bn/moving_variance",
        "moving_mean",
        "['batch_stats']['BatchNorm_0']['mean']",
        "batch_stats.Dense_1.var",
        "module.bn1.running_var",
    ],
)
def test_running_statistics_are_known_by_the_names_of_pytorch_keras_and_flax(name: str) -> None:
    model = {"dense/kernel": torch.ones(3), name: torch.ones(3)}
    assert classify_tensors(model) == {
        "dense/kernel": TensorKind.TRAINABLE,
        name: TensorKind.BUFFER,
    }


@pytest.mark.parametrize("name", ["my_batch_stats/mean", "moving_mean/kernel", "params/bn/scale"])
def test_a_name_that_holds_such_a_word_elsewhere_is_trainable(name: str) -> None:
    assert classify_tensors({name: torch.ones(3)}) == {name: TensorKind.TRAINABLE}


def unnamed(*tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    return {str(position): tensor for position, tensor in enumerate(tensors)}


def buffers(model: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, kind in classify_tensors(model).items() if kind is TensorKind.BUFFER]


def test_a_list_of_pytorchs_arrays_has_its_running_statistics_before_the_counter() -> None:
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 6),
        torch.nn.BatchNorm1d(6),
        torch.nn.Linear(6, 5),
        torch.nn.BatchNorm1d(5),
    )
    model = unnamed(*network.state_dict().values())
    assert buffers(model) == ["4", "5", "11", "12"]


def test_without_a_counter_or_with_unlike_arrays_before_it_nothing_is_a_statistic() -> None:
    vector, counter = torch.ones(4), torch.tensor(3)
    assert buffers(unnamed(vector, vector, vector)) == []
    assert buffers(unnamed(torch.ones(4, 4), torch.ones(4, 4), counter)) == []
    assert buffers(unnamed(torch.ones(5), vector, counter)) == []
    assert buffers(unnamed(vector, vector, torch.ones(1, dtype=torch.int64))) == []
    assert buffers(unnamed(vector, vector, torch.tensor(3.0))) == []
    assert buffers(unnamed(vector, counter, vector, counter)) == []


def test_the_order_of_a_list_says_nothing_where_there_are_names() -> None:
    model = {"a": torch.ones(4), "b": torch.ones(4), "steps": torch.tensor(3)}
    assert buffers(model) == []


def test_named_tensors_override_the_rule_in_both_directions() -> None:
    model = {"body": torch.ones(2), "bn.running_mean": torch.zeros(2), "count": torch.tensor(0)}
    kinds = classify_tensors(model, trainable=["bn.running_mean"])
    assert kinds == {
        "body": TensorKind.BUFFER,
        "bn.running_mean": TensorKind.TRAINABLE,
        "count": TensorKind.INTEGER,
    }


@pytest.mark.parametrize(
    ("tensor", "trainable", "error", "said"),
    [
        (torch.ones(1), ["haed"], ValueError, r"'haed'.*'head'"),
        (torch.tensor(1), ["head"], TypeError, r"'head'.*int64"),
        (torch.ones(1, dtype=torch.complex64), None, TypeError, r"'head'.*complex64"),
    ],
)
def test_what_cannot_be_trained_is_named(
    tensor: torch.Tensor, trainable: list[str] | None, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        classify_tensors({"head": tensor}, trainable)
