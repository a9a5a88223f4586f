"""Claims about conf/strategy: each baseline is a file there, with the defaults of its class."""

from __future__ import annotations

import inspect
from functools import cache

import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from support.baselines_federation import BUILDS, MODEL, client_of, drawn
from support.grid import ClientsGrid
from support.records import array_record

from fedpw_flwr.lab.config.configuration import compose_configuration, config_folder
from fedpw_flwr.strategy.sampling import NodeSampling

SET_OTHERWISE = {"qfedavg": {"q": 1.0, "rescale": "mean"}}
"""Where the class is the paper's, and the file what learns in many local steps."""

ALL = sorted(path.stem for path in (config_folder() / "strategy").glob("*.yaml"))


composed = cache(compose_configuration)


def settings_of(name: str, overrides: str = "") -> dict[str, object]:
    configuration = composed("config", f"strategy={name} {overrides}".strip())
    settings = OmegaConf.to_container(configuration.strategy, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


@pytest.mark.parametrize("name", BUILDS)
def test_every_baseline_names_itself_and_can_be_built(name: str) -> None:
    settings = settings_of(name)
    assert settings.pop("name") == name
    strategy = instantiate(settings)
    assert isinstance(strategy, FlowerFedAvg)
    assert (strategy.fraction_train, strategy.fraction_evaluate) == (1.0, 0.0)


@pytest.mark.parametrize("name", [name for name in BUILDS if name != "fedprox"])
def test_its_file_shows_all_its_settings_with_their_defaults(name: str) -> None:
    settings = settings_of(name)
    parameters = inspect.signature(get_class(str(settings["_target_"]))).parameters
    own = {
        key: one.default
        for key, one in parameters.items()
        if key not in ("options", "train_loss_key")
    }
    for key, default in {**own, **SET_OTHERWISE.get(name, {})}.items():
        assert key in settings
        if default is not inspect.Parameter.empty:
            assert settings[key] == default


def test_settings_that_follow_from_others() -> None:
    assert settings_of("qfedavg", "client.learning_rate=0.003")["client_learning_rate"] == 0.003
    assert settings_of("fedprox")["proximal_mu"] == 0.01


@pytest.mark.parametrize("name", ["afl", "term", "qfedavg"])
def test_a_method_of_losses_takes_that_of_the_model_that_arrives(name: str) -> None:
    assert settings_of(name)["train_loss_key"] == "initial_loss"


@pytest.mark.parametrize("name", ALL)
def test_all_methods_of_a_comparison_train_the_same_clients(name: str) -> None:
    """Who is drawn follows from the seed and the round, whatever the file in conf/strategy."""
    grid = ClientsGrid({200 - 7 * one: client_of(drawn, one) for one in range(8)})
    settings = settings_of(name, "strategy.fraction_train=0.5")
    del settings["name"]
    strategy = instantiate(settings)
    strategy.sampling.asks_identities = True
    strategy.sampling.seed = 3
    for server_round in range(1, 5):
        messages = strategy.configure_train(server_round, array_record(MODEL), ConfigRecord(), grid)
        asked = {message.metadata.dst_node_id for message in messages}
        drawn_clients = NodeSampling(seed=3).draw("train", server_round, range(8), 4)
        assert asked == {200 - 7 * one for one in drawn_clients}


OUT_OF_RANGE: dict[str, dict[str, list[object]]] = {
    "fedprox": {"proximal_mu": [-0.1]},
    "qfedavg": {"client_learning_rate": [0.0], "q": [-0.5], "rescale": ["median"]},
    "afl": {"lambda_step": [0.0, float("nan")]},
    "term": {"t": [float("inf")]},
    "fedmgda_plus": {
        "epsilon": [-0.1, 1.1],
        "server_learning_rate": [0.0],
        "decay": [1.5],
        "rescale": ["median"],
    },
    "fedheal": {"tau": [1.0, -0.1], "beta": [1.5, -1.0]},
    "fedavgm": {"server_learning_rate": [0.0], "server_momentum": [1.0, -0.1]},
    "fedadam": {"eta": [-1.0], "beta_1": [1.0], "beta_2": [1.2], "tau": [0.0]},
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_settings_out_of_range_are_refused(name: str) -> None:
    build = get_class(str(settings_of(name)["_target_"]))
    needed = {"qfedavg": {"client_learning_rate": 0.1}}.get(name, {})
    for setting, values in OUT_OF_RANGE[name].items():
        for value in values:
            with pytest.raises(ValueError, match=rf"{setting}\b"):
                build(**{**needed, setting: value})


@pytest.mark.parametrize(("name", "wrong"), [("fedprox", "proximal_mu"), ("term", "t")])
def test_settings_that_are_no_numbers_are_refused(name: str, wrong: str) -> None:
    with pytest.raises(TypeError, match=rf"{wrong}\b"):
        get_class(str(settings_of(name)["_target_"]))(**{wrong: "0.1"})
