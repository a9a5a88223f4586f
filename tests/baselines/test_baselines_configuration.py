"""Claims about conf/strategy: every rival is a file there, built with the defaults of its class."""

from __future__ import annotations

import inspect

import pytest
from baselines_federation import BUILDS
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from fedpw_flwr.experiment.configuration import compose_configuration

RIVALS = [name for name in BUILDS if name != "fedavg"]

SET_OTHERWISE = {"qfedavg": {"q": 1.0, "rescale": "mean"}}
"""Where the class is the paper's, and the file what learns in many local steps."""


def settings_of(name: str, overrides: str = "") -> dict[str, object]:
    configuration = compose_configuration("config", f"strategy={name} {overrides}".strip())
    settings = OmegaConf.to_container(configuration.strategy, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_names_itself_and_can_be_built(name: str) -> None:
    settings = settings_of(name)
    assert settings.pop("name") == name
    strategy = instantiate(settings)
    assert isinstance(strategy, FlowerFedAvg)
    assert (strategy.fraction_train, strategy.fraction_evaluate) == (1.0, 0.0)


@pytest.mark.parametrize("name", [name for name in RIVALS if name != "fedprox"])
def test_its_file_shows_all_its_settings_with_their_defaults(name: str) -> None:
    settings = settings_of(name)
    parameters = inspect.signature(get_class(str(settings["_target_"])).__init__).parameters
    own = {
        key: one.default
        for key, one in parameters.items()
        if key not in ("self", "options", "train_loss_key")
    }
    for key, default in {**own, **SET_OTHERWISE.get(name, {})}.items():
        assert key in settings
        if default is not inspect.Parameter.empty:
            assert settings[key] == default


def test_q_fedavg_takes_the_clients_learning_rate() -> None:
    assert settings_of("qfedavg", "client.learning_rate=0.003")["client_learning_rate"] == 0.003


def test_fedprox_has_a_term() -> None:
    assert settings_of("fedprox")["proximal_mu"] == 0.01
