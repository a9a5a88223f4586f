"""Every file of conf/model builds a network that takes the images of its data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from fedpw_flwr.lab.config.configuration import compose_configuration
from fedpw_flwr.lab.experiment import build_group

CONF = Path(__file__).parents[3] / "conf"
NAMES = sorted(file.stem for file in (CONF / "model").glob("*.yaml"))


def _built(name: str, size: int, channels: int = 3, **changes: Any) -> nn.Module:
    model = OmegaConf.merge(OmegaConf.load(CONF / "model" / f"{name}.yaml"), changes)
    whole = OmegaConf.create({"dataset": {"image_size": size}, "model": model})
    built: nn.Module = instantiate(whole.model, num_classes=7, in_channels=channels)
    return built


@pytest.mark.parametrize("name", NAMES)
def test_configured_models_accept_images_of_any_size_and_channels(name: str) -> None:
    for size, channels in ((16, 3), (28, 1), (32, 3)):
        model = _built(name, size, channels)
        with torch.no_grad():
            assert model(torch.zeros(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"mlp", "logistic"}))
def test_normalisation_of_a_configured_model_can_be_chosen(name: str) -> None:
    layers = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm}
    for normalisation in ("batch", "group", "none"):
        found = {type(layer) for layer in _built(name, 16, normalisation=normalisation).modules()}
        assert found & {*layers.values()} == {*filter(None, [layers.get(normalisation)])}
    with pytest.raises(Exception, match="normalisation='layer': choose one of batch, group, none"):
        _built(name, 16, normalisation="layer")


@pytest.mark.parametrize("name", ["mlp", "logistic", "cnn_mcmahan"])
def test_networks_for_one_size_of_image_get_it_from_the_data_set(name: str) -> None:
    configured = compose_configuration("config", f"experiment=fashion_mnist model={name}")
    model = build_group("model", configured, num_classes=10, in_channels=1)
    assert model.image_shape == (1, 28, 28)


@pytest.mark.parametrize("name", ["mlp", "logistic"])
def test_models_of_tables_take_rows(name: str) -> None:
    model = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    whole = OmegaConf.create({"dataset": {}, "model": model})
    built = instantiate(whole.model, num_classes=2, in_channels=35)
    assert built(torch.zeros(4, 35)).shape == (4, 2)
    with pytest.raises(
        ValueError, match=r"built for images of shape \(35, 1, 1\), got \(34, 1, 1\)"
    ):
        built(torch.zeros(4, 34))
