"""The light rules say of settings what the heavy classes say."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import pytest
from hydra.utils import get_object, instantiate

from fedpw_flwr.lab.config.configuration import (
    RuntimeSettings,
    compose_configuration,
    config_folder,
    group_settings,
)
from fedpw_flwr.lab.config.setting_rules import GROUPS, OWN, RUNTIME, SHARED, broken_rules
from fedpw_flwr.lab.data.source import ImageOptions
from fedpw_flwr.strategy.options import FedAvgOptions, FedPWOptions

STRATEGIES = sorted(path.stem for path in (config_folder() / "strategy").glob("*.yaml"))
LARGE, SMALL = 1e6, -1e-9


def _configured(group: str, choice: str) -> dict[str, Any]:
    typed = f"{group}={choice}"
    # What only the user can know.
    needed = {"dataset=four_domains": "dataset.folder=/data"}
    configuration = compose_configuration("config", f"{typed} {needed.get(typed, '')}")
    return group_settings(configuration, group)


def _refused_when_built(settings: dict[str, Any], **arguments: Any) -> bool:
    try:
        instantiate(settings, **arguments)
    except Exception:
        return True
    return False


def _parameters(target: str) -> set[str]:
    parameters = inspect.signature(get_object(target)).parameters.values()
    names = {one.name for one in parameters}
    if "images" in names:
        names |= ImageOptions.__annotations__.keys()
    elif any(one.kind is one.VAR_KEYWORD for one in parameters):
        options = FedPWOptions if "positional" in names else FedAvgOptions
        names |= options.__annotations__.keys() | {"train_loss_key"}
    return names - {"positional", "options", "images"}


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        (group, path.stem)
        for group in GROUPS
        for path in sorted((config_folder() / group).glob("*.yaml"))
    ],
)
def test_every_setting_of_what_is_configured_has_a_rule_and_keeps_it(
    group: str, choice: str
) -> None:
    settings = _configured(group, choice)
    target = settings["_target_"]
    rules = SHARED[group] | OWN[group][target.rpartition(".")[2]]
    assert _parameters(target) <= rules.keys() | {"train_loss_key"}
    assert broken_rules(group, settings) == []


def test_every_setting_of_the_runtime_has_a_rule() -> None:
    assert RuntimeSettings.__dataclass_fields__.keys() == RUNTIME.keys()


@pytest.mark.parametrize("choice", STRATEGIES)
def test_what_a_rule_refuses_of_a_strategy_the_strategy_refuses(choice: str) -> None:
    settings = _configured("strategy", choice)
    own = settings.keys() & OWN["strategy"][settings["_target_"].rpartition(".")[2]]
    tried = 0
    for key in own:
        for value in (-1.5, SMALL, 0, 1, 1.5, LARGE, math.nan, math.inf, "word", True, None):
            changed = {**settings, key: value}
            if broken_rules("strategy", changed):
                assert _refused_when_built(changed), f"{key}={value}"
                tried += 1
            elif key not in ("upload", "upload_dtype", "adjustment", "device"):
                assert not _refused_when_built(changed), f"{key}={value}"
    assert tried >= len(own)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("epochs", [0, 1.5, True]),
        ("crop_padding", [-1]),
        ("learning_rate", [0.0, math.nan, "fast"]),
        ("momentum", [1.0, -0.1]),
        ("weight_decay", [-1e-5, math.inf]),
        ("precision", ["float16", 32]),
        ("compile", ["yes", 1]),
    ],
)
def test_what_a_client_cannot_do_is_refused_by_its_key(key: str, values: list[object]) -> None:
    settings = _configured("client", "sgd")
    for value in values:
        (wrong,) = broken_rules("client", {**settings, key: value})
        assert re.match(rf"client\.{key} must be .*, got {re.escape(repr(value))}$", wrong)


def test_what_is_not_of_this_package_has_no_rules() -> None:
    foreign = {"_target_": "flwr.serverapp.strategy.FedProx", "proximal_mu": -4}
    assert broken_rules("strategy", foreign) == []
    built = {"_target_": "fedpw_flwr.FedPW", "beta": {"_target_": "my.schedule"}}
    assert broken_rules("strategy", built) == []
