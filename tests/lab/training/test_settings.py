from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf

from fedpw_flwr.lab.training.settings import ClientSettings

CONF = Path(__file__).parents[3] / "conf"


def test_defaults_are_the_papers() -> None:
    assert ClientSettings() == ClientSettings(
        10, 64, 0.001, 0.9, 1e-5, 4, precision="float32", compile=False, horizontal_flip=False
    )


def test_configuration_holds_every_setting() -> None:
    written = OmegaConf.load(CONF / "client" / "sgd.yaml")
    assert isinstance(instantiate(written), ClientSettings)
    assert set(written) - {"_target_"} == set(ClientSettings.__dataclass_fields__)
