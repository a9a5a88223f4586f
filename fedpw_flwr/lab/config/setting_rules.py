"""What each setting of a run may be, as data: the one definition that every check reads.

Every configuration is checked with them when it is composed, at once and without PyTorch, which
takes seconds to import; what it describes does not check again what a rule says. Strategies do, for
they are there without the laboratory: ``tests/lab/config/test_setting_rules.py`` holds the rules
against them. An object that is not of this package has no rules here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Rule:
    """What a value may be: `words` completes "it must be ...", `allows` tests a value."""

    words: str
    allows: Callable[[Any], bool]


def broken_rules(group: str, settings: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a group's settings (``_target_`` included), each with its key."""
    module, _, target = str(settings.get("_target_")).rpartition(".")
    package, *inside = module.split(".")
    if package != "fedpw_flwr":
        return []
    path = Path(__file__).parents[2].joinpath(*inside)
    own = OWN[group].get(target)
    if own is None or not (path.is_dir() or path.with_suffix(".py").is_file()):
        return [
            f"{group}._target_={module}.{target}: this package has no such {group}: choose one of "
            f"conf/{group}/ by its file name, or one of {', '.join(OWN[group])} in its module"
        ]
    given = {
        key: value for key, value in settings.items() if not key.startswith("_") and key != "name"
    }
    return wrong_settings(given, SHARED[group] | own, f"{group}.", of=target)


def wrong_settings(
    given: Mapping[str, Any], rules: Mapping[str, Rule], prefix: str = "", of: str = "a run"
) -> list[str]:
    """Return what is wrong with the given values: keys without a rule, and broken rules."""
    unknown = [
        f"{prefix}{key} is no setting of {of}: leave it out. There are {', '.join(rules)}"
        for key in given
        if key not in rules
    ]
    return unknown + [
        f"{prefix}{key} must be {rules[key].words}, got {value!r}"
        for key, value in given.items()
        if key in rules and not _is_built(value) and not rules[key].allows(value)
    ]


def _is_built(value: object) -> bool:
    """Return whether a value only describes the object that hydra will build in its place."""
    return isinstance(value, dict) and "_target_" in value


def _number(
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
    whole: bool = False,
    infinite: bool = False,
) -> Rule:
    """Make the rule of a range: both ends are in it, but the least `above` and the most `below`."""
    types = int if whole else (int, float)

    def allows(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, types):
            return False
        # Not a number is in no range.
        inside = least < value if above else least <= value
        inside = inside and (value < most if below else value <= most)
        return inside and (infinite or abs(value) < math.inf)

    bounds = []
    if least > -math.inf:
        bounds.append(f"above {least:g}" if above else f"of at least {least:g}")
    if most < math.inf:
        bounds.append(f"below {most:g}" if below else f"at most {most:g}")
    kind = "a whole number" if whole else "a number"
    return Rule(" ".join([kind, " and ".join(bounds) or "that is finite"]), allows)


def _one_of(*choices: str | int) -> Rule:
    return Rule(
        f"one of {', '.join(map(str, choices))}",
        lambda value: not isinstance(value, bool) and value in choices,
    )


def _or_auto(rule: Rule) -> Rule:
    return Rule(f"auto, or {rule.words}", lambda value: value == "auto" or rule.allows(value))


def _or_null(rule: Rule) -> Rule:
    return Rule(f"{rule.words}, or null", lambda value: value is None or rule.allows(value))


def _list_of(each: Rule) -> Rule:
    def allows(value: Any) -> bool:
        if not isinstance(value, list) or not value or not all(map(each.allows, value)):
            return False
        names = [one for one in value if isinstance(one, str)]
        return len(names) == len(set(names))

    return Rule(f"a list with at least one entry, each {each.words}, and no name twice", allows)


def _for_each_domain(rule: Rule) -> Rule:
    return Rule(
        f"{rule.words}, or such a number for each domain's name",
        lambda value: (
            all(map(rule.allows, value.values())) if isinstance(value, dict) else rule.allows(value)
        ),
    )


def trackers_named(tracking: Any) -> list[Any]:
    """Return what `tracking` names, as a list."""
    return tracking if isinstance(tracking, list) else [] if tracking is None else [tracking]


_ANYTHING = Rule("anything", lambda value: True)
_SWITCH = Rule("true or false", lambda value: isinstance(value, bool))
_TEXT = Rule("a text", lambda value: isinstance(value, str) and value != "")
_DEVICE = Rule(
    "a device such as cpu, cuda or cuda:0",
    lambda value: re.fullmatch(r"(cpu|cuda|mps|xpu|hpu|xla|mtia)(:\d+)?", str(value)) is not None,
)
_COUNT = _number(1, whole=True)
_FROM_ZERO = _number(0, whole=True)
_SHARE = _number(0, 1)
_BELOW_ONE = _number(0, 1, below=True)
_POSITIVE = _number(0, above=True)
_NOT_NEGATIVE = _number(0)
_ABOVE_ZERO_TO_ONE = _number(0, 1, above=True)
_BOUND = _or_null(_number(1))
_RESCALE = _one_of("none", "mean")
_NORMALISATION = _one_of("batch", "group", "none")
_GROUP = Rule("a group of settings", lambda value: isinstance(value, dict))

TRACKERS = ("tensorboard", "mlflow", "wandb")
"""What `tracking` may name: libraries, each with a tracker and an extra of its own."""

GROUPS = ("dataset", "model", "partition", "client", "strategy")
"""Groups of a configuration that describe an object."""

RUN: dict[str, Rule] = {
    "seed": Rule(
        f"a whole number of at least 0 and at most 2**64 - 1 = {2**64 - 1}",
        lambda value: _FROM_ZERO.allows(value) and value < 2**64,
    ),
    "rounds": _COUNT,
    # A folder's name may be a number.
    "resume": Rule("a folder", lambda value: not isinstance(value, dict | list)),
    **dict.fromkeys((*GROUPS, "runtime"), _GROUP),
    "stop": _or_null(_GROUP),
    "tracking": Rule(
        f"{', '.join(TRACKERS)}, a list of these such as [tensorboard,mlflow], or null",
        lambda value: all(one in TRACKERS for one in trackers_named(value)),
    ),
}
"""Rules of the top-level keys."""

STOP: dict[str, Rule] = {
    "metric": _TEXT,
    "target": _or_null(_number()),
    "patience": _or_null(_COUNT),
    "min_rounds": _FROM_ZERO,
}
"""Rules of when a run ends early."""

RUNTIME: dict[str, Rule] = {
    "device": _or_auto(_DEVICE),
    "cpus_per_client": _COUNT,
    "gpus_per_client": _NOT_NEGATIVE,
    "total_cpus": _or_null(_COUNT),
    "ray_address": _or_null(_TEXT),
    "niceness": _number(0, 19, whole=True),
    "runs_at_a_time": _or_auto(_COUNT),
    "connect_timeout": _number(0, above=True, infinite=True),
    "round_timeout": _number(0, above=True, infinite=True),
    "profile": _SWITCH,
    "checkpoint_every": _COUNT,
    "evaluate_every": _COUNT,
}
"""Rules of `RuntimeSettings`, which also checks what its values have to do with each other."""

CLIENT: dict[str, Rule] = {
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "learning_rate": _POSITIVE,
    "momentum": _BELOW_ONE,
    "weight_decay": _NOT_NEGATIVE,
    "crop_padding": _FROM_ZERO,
    "precision": _one_of("float32", "bfloat16"),
    "compile": _SWITCH,
    "horizontal_flip": _SWITCH,
}
"""Rules of `ClientSettings`."""

_IMAGES = {
    "image_size": _COUNT,
    "channels": _one_of(1, 3),
    "num_classes": _COUNT,
    "max_test_per_domain": _or_null(_COUNT),
    "mean": _or_null(_list_of(_number())),
    "std": _or_null(_list_of(_POSITIVE)),
}
_RESNET10 = {"width": _COUNT, "normalisation": _NORMALISATION}

SHARED: dict[str, dict[str, Rule]] = {
    "strategy": {
        **dict.fromkeys(("fraction_train", "fraction_evaluate"), _SHARE),
        **dict.fromkeys(
            ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), _FROM_ZERO
        ),
        **dict.fromkeys(("weighted_by_key", "arrayrecord_key", "configrecord_key"), _TEXT),
        **dict.fromkeys(("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"), _ANYTHING),
        "train_loss_key": _TEXT,
    },
    "partition": {"clients_per_domain": _COUNT, "test_share": _BELOW_ONE},
    "model": {"num_classes": _COUNT, "in_channels": _COUNT},
    "dataset": {},
    "client": {},
}
"""Rules of the settings that all objects of a group have."""

OWN: dict[str, dict[str, dict[str, Rule]]] = {
    "client": {"ClientSettings": CLIENT},
    "strategy": {
        "FedPW": {
            "avg_drop_rate": _BELOW_ONE,
            "beta": _ABOVE_ZERO_TO_ONE,
            "loss_source": _one_of("train", "evaluate"),
            "evaluate_loss_key": _TEXT,
            "clip_weights": _SWITCH,
            "adjust_parameters": _SWITCH,
            "adapt_weights": _SWITCH,
            "max_weight": _BOUND,
            "max_loss_ratio": _BOUND,
            "trainable": _or_null(_list_of(_TEXT)),
            "device": _or_null(_DEVICE),
            "adjustment": _one_of("server", "client"),
            "upload": _one_of("dense", "packed"),
            "upload_dtype": _one_of("float32", "float16", "bfloat16"),
            "checkpoint_dir": _ANYTHING,
            "checkpoint_every": _COUNT,
            "resume": _SWITCH,
            "wait_for_clients": _or_null(_NOT_NEGATIVE),
            "when_missing": _one_of("stop", "continue"),
            "observers": _ANYTHING,
            "seed": _or_null(_number(whole=True)),
        },
        "FedAvg": {},
        "EqualFedAvg": {},
        "FedProx": {"proximal_mu": _NOT_NEGATIVE},
        "AFL": {"lambda_step": _POSITIVE},
        "TERM": {"t": _number()},
        "QFedAvg": {"client_learning_rate": _POSITIVE, "q": _NOT_NEGATIVE, "rescale": _RESCALE},
        "FedHEAL": {"tau": _BELOW_ONE, "beta": _SHARE},
        "FedMGDAPlus": {
            "epsilon": _SHARE,
            "server_learning_rate": _POSITIVE,
            "decay": _ABOVE_ZERO_TO_ONE,
            "rescale": _RESCALE,
        },
        "FedAvgM": {"server_learning_rate": _POSITIVE, "server_momentum": _BELOW_ONE},
        "FedAdam": {"eta": _POSITIVE, "beta_1": _BELOW_ONE, "beta_2": _BELOW_ONE, "tau": _POSITIVE},
    },
    "partition": {
        "ByDomain": {
            "train_per_client": _or_null(_for_each_domain(_COUNT)),
            "share": _or_null(_ABOVE_ZERO_TO_ONE),
        },
        "Dirichlet": {"alpha": _number(0, above=True, infinite=True), "min_pictures": _COUNT},
        "Pathological": {"classes_per_client": _COUNT},
        "Shards": {"shards_per_client": _COUNT},
    },
    "model": {
        "ResNet10": _RESNET10,
        "ResNet": {**_RESNET10, "depth": _one_of(10, 12, 18, 20, 34)},
        "SmallCNN": _RESNET10,
        "McMahanCNN": {"image_size": _number(4, whole=True), "normalisation": _NORMALISATION},
        "MLP": {"image_size": _COUNT, "width": _COUNT},
        "Logistic": {"image_size": _COUNT},
        "torchvision_resnet18": {"normalisation": _NORMALISATION},
    },
    "dataset": {
        "embedded_digits": {
            "domains": _list_of(_one_of("scans", "textured", "blurred", "fonts")),
            "image_size": _number(8, whole=True),
        },
        "heart_disease": {
            "domains": _list_of(_one_of("cleveland", "hungarian", "switzerland", "va")),
            "folder": _TEXT,
            "download": _SWITCH,
            "test_share": _number(0, 1, above=True, below=True),
            "seed": _or_null(_FROM_ZERO),
            "url": _TEXT,
        },
        "huggingface": {
            "domains": _list_of(_TEXT),
            **dict.fromkeys(("image_column", "label_column", "train_split"), _TEXT),
            **dict.fromkeys(
                ("path", "folder", "revision", "subset", "domain_column", "test_split"),
                _or_null(_TEXT),
            ),
            "test_share": _number(0, 1, above=True, below=True),
            **_IMAGES,
        },
        "archives": {"domains": _list_of(_TEXT), "folder": _TEXT, **_IMAGES},
        "named_set": {
            "domains": _list_of(_TEXT),
            "folder": _TEXT,
            "archives_folder": _or_null(_TEXT),
            "download": _SWITCH,
            **_IMAGES,
            "test_share": _number(0, 1, above=True, below=True),
            "syn": _one_of("rendered", "folder"),
            "syn_train": _COUNT,
            "syn_test": _COUNT,
        },
    },
}
"""Rules of an object's further settings, by group and by the name of what is built."""
