"""Every data set and experiment of conf/ composes, fits its functions, and can be overridden."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf

from fedpw_flwr.lab.config.configuration import compose_configuration, count_clients
from fedpw_flwr.lab.data.named_sets import named_set
from fedpw_flwr.lab.data.source import ImageOptions
from fedpw_flwr.lab.training.settings import ClientSettings

CONF = Path(__file__).parents[3] / "conf"
DATA_SETS = sorted(file.stem for file in (CONF / "dataset").glob("*.yaml"))
NAMED = ["cifar10", "cifar100", "digits", "fashion_mnist", "office_caltech"]
SINGLE_DOMAIN = ["fashion_mnist", "cifar10", "cifar100"]


def node_of(name: str) -> DictConfig:
    node = OmegaConf.load(CONF / "dataset" / f"{name}.yaml")
    assert isinstance(node, DictConfig)
    return node


@pytest.mark.parametrize("name", DATA_SETS)
def test_keys_of_a_data_set_are_arguments_of_its_function(name: str) -> None:
    node = node_of(name)
    arguments = {*inspect.signature(get_method(node["_target_"])).parameters}
    if "images" in arguments:
        arguments |= ImageOptions.__annotations__.keys()
    assert set(node) - {"name", "_target_", "_convert_"} <= arguments


@pytest.mark.parametrize("name", NAMED)
def test_a_named_set_bears_its_name_and_can_be_read_from_archives(name: str) -> None:
    node = node_of(name)
    assert node.name == name
    assert get_method(node["_target_"]) is named_set
    assert node.archives_folder is None
    assert list(node.domains) == [name] if name in SINGLE_DOMAIN else len(node.domains) == 4


@pytest.mark.parametrize(
    ("name", "partition"),
    [
        *(("cifar10", "pat1"), ("cifar100", "pat2"), ("fashion_mnist", "shards")),
        *(("fashion_mnist", "iid"), ("fashion_mnist", "dirichlet")),
    ],
)
def test_partition_on_the_command_line_wins_over_the_experiments(name: str, partition: str) -> None:
    configured = compose_configuration("config", f"experiment={name}")
    assert (configured.dataset.name, configured.partition.name) == (name, "dirichlet")
    assert configured.partition.alpha == 0.1
    chosen = compose_configuration("config", f"experiment={name} partition={partition}")
    assert chosen.partition.name == partition
    assert chosen.partition == OmegaConf.load(CONF / "partition" / f"{partition}.yaml")
    assert count_clients(chosen) == 20


def test_the_papers_digits_is_the_papers() -> None:
    configured = compose_configuration("config", "experiment=paper_digits")
    assert count_clients(configured) == 20
    assert (configured.rounds, configured.dataset.image_size) == (200, 32)
    expected: dict[str, dict[str, Any]] = {
        "dataset": {"domains": ["mnist", "usps", "svhn", "syn"], "max_test_per_domain": None},
        "partition": {"share": 0.01},
        "model": {"width": 64, "_target_": "fedpw_flwr.lab.models.resnet.ResNet10"},
    }
    for group, values in expected.items():
        assert {key: configured[group][key] for key in values} == values
    assert set(configured.client) - {"_target_"} == set(ClientSettings.__dataclass_fields__)
    assert instantiate(configured.client) == ClientSettings(
        10, 64, 0.001, 0.9, 1e-5, 4, precision="float32", compile=False, horizontal_flip=False
    )


def test_experiments_have_clients_in_every_domain() -> None:
    for name, clients in (("digits", 20), ("office_caltech", 8)):
        assert count_clients(compose_configuration("config", f"experiment={name}")) == clients
    default = compose_configuration()
    assert (default.dataset.name, default.partition.name) == ("embedded_digits",) * 2


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("fashion_mnist", [0.2860], [0.3530]),
        ("cifar10", [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    ],
)
def test_normalisation_is_that_of_the_sets_training_images(
    name: str, mean: list[float], std: list[float]
) -> None:
    # Of all pixels of the full training set, between 0 and 1, as is usually quoted.
    node = node_of(name)
    assert list(node.mean) == pytest.approx(mean, abs=1e-3)
    assert list(node.std) == pytest.approx(std, abs=1e-3)
