from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fedpw_flwr.lab.training.settings import ClientSettings

CONF = Path(__file__).parents[3] / "conf"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("batch_size", 0),
        ("crop_padding", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "fast"),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1e-5),
        ("weight_decay", float("inf")),
        ("precision", "float16"),
        ("precision", 32),
        ("compile", "yes"),
        ("compile", 1),
        ("horizontal_flip", "half"),
        ("horizontal_flip", 1),
    ],
)
def test_impossible_setting_is_named_with_its_value(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"client\.{name} must be .*got "):
        ClientSettings(**{name: value})


def test_defaults_are_the_papers() -> None:
    assert ClientSettings() == ClientSettings(
        10, 64, 0.001, 0.9, 1e-5, 4, precision="float32", compile=False, horizontal_flip=False
    )


def test_configuration_holds_every_setting() -> None:
    written = OmegaConf.load(CONF / "client" / "sgd.yaml")
    assert isinstance(instantiate(written), ClientSettings)
    assert set(written) - {"_target_"} == set(ClientSettings.__dataclass_fields__)
