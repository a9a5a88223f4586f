"""What the command can refuse, or has to say, before anything is imported or started.

Starting Flower and importing PyTorch takes from half a minute to one and a half on a small machine.
Nobody should wait for that to read that ``strategy.beta=7`` is too large, or a folder mistyped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fedpw_flwr.lab.config.configuration import (
    GROUPS,
    ConfigurationError,
    RuntimeSettings,
    count_clients,
    group_settings,
    named_part,
    runtime_settings,
)
from fedpw_flwr.lab.config.hardware import count_gpus
from fedpw_flwr.lab.config.setting_rules import broken_rules
from fedpw_flwr.lab.data.locations import check_archives, check_named_set

__all__ = ["check_early", "warning_of_slow_arithmetic"]

Settings = Mapping[str, Any]

_DEVICES = re.compile(r"(cpu|cuda|mps|xpu|hpu|xla|mtia)(:\d+)?")
"""PyTorch's names of devices that can train."""


def check_early(configuration: DictConfig) -> None:
    """Check all that can be known without PyTorch, Flower and the data themselves.

    Parameters
    ----------
    configuration : DictConfig
        A checked one; its folders are absolute.

    Raises
    ------
    ConfigurationError
        If a value cannot be used, values contradict each other, the data are not where they should
        be, or there is no GPU for the clients. The message has the key and what to do.
    """
    groups = {group: _plain(group_settings(configuration, group)) for group in (*GROUPS, "runtime")}
    wrong = [
        line
        for group in GROUPS
        for line in (*_missing_module(group, groups[group]), *broken_rules(group, groups[group]))
    ]
    wrong = wrong or [*_contradictions(groups)]
    if wrong:
        raise ConfigurationError("\n".join(wrong))
    with named_part("client"):
        instantiate(group_settings(configuration, "client"))
    _check_minima(groups["strategy"], count_clients(configuration))
    with named_part("dataset"):
        _check_files(groups["dataset"])
    _check_gpus(runtime_settings(configuration))


def warning_of_slow_arithmetic(configuration: DictConfig, has_bfloat16: bool | None) -> str | None:
    """Return that training on this processor will be slow in bfloat16; None where it will not be.

    Parameters
    ----------
    configuration : DictConfig
        A checked one.
    has_bfloat16 : bool | None
        Whether the processor has instructions for it; None where that cannot be told.
    """
    runtime = runtime_settings(configuration)
    on_gpu = runtime.gpus_per_client > 0 and runtime.device != "cpu"
    elsewhere = runtime.ray_address is not None
    slow = configuration.client.get("precision") == "bfloat16" and has_bfloat16 is False
    if not slow or on_gpu or elsewhere:
        return None
    return (
        "client.precision=bfloat16 trains about ten times slower than float32 here: this processor "
        "has neither avx512_bf16 nor AMX. Set client.precision=float32, or train on a GPU"
    )


def _plain(settings: DictConfig) -> dict[str, Any]:
    nested = OmegaConf.to_container(settings, resolve=True)
    assert isinstance(nested, dict)
    return {str(key): value for key, value in nested.items()}


def _missing_module(group: str, settings: Settings) -> Iterator[str]:
    target = str(settings["_target_"])
    module = target.split(".")[0]
    if not module.isidentifier() or find_spec(module) is None:
        yield (
            f"{group}._target_={target}: there is no module {module}: correct the name, or add the "
            "folder that holds it to PYTHONPATH"
        )


def _contradictions(groups: Mapping[str, Settings]) -> Iterator[str]:
    """Return which values, each of them right, do not go together."""
    strategy, dataset = groups["strategy"], groups["dataset"]
    packed = strategy.get("upload") == "packed"
    on_clients = strategy.get("adjustment") == "client" and strategy.get("adjust_parameters", True)
    if packed and not on_clients:
        yield (
            "strategy.upload=packed sends what clients masked: it needs strategy.adjustment=client "
            "and strategy.adjust_parameters=true"
        )
    if not packed and strategy.get("upload_dtype", "float32") != "float32":
        yield (
            f"strategy.upload_dtype={strategy['upload_dtype']} is the type of packed values: add "
            "strategy.upload=packed"
        )
    wanted = groups["partition"].get("classes_per_client", 1)
    of_package = str(dataset["_target_"]).startswith("fedpw_flwr.")
    # What this package reads is digits unless it is told otherwise.
    classes = dataset.get("num_classes", 10 if of_package else wanted)
    if wanted > classes:
        yield (
            f"partition.classes_per_client={wanted}, but the data set has {classes} classes: "
            "choose no more than there are"
        )
    channels = dataset.get("channels")
    for key in ("mean", "std"):
        numbers = dataset.get(key)
        if channels is not None and numbers is not None and len(numbers) != channels:
            yield (
                f"dataset.{key} has {len(numbers)} numbers for dataset.channels={channels}: give "
                "one for each channel, or null"
            )
    sizes = [groups[group].get("image_size") for group in ("model", "dataset")]
    if None not in sizes and sizes[0] != sizes[1]:
        yield (
            f"model.image_size={sizes[0]}, but pictures have dataset.image_size={sizes[1]}: leave "
            "the first out, and it follows the second"
        )
    for group, automatic in (("runtime", "auto"), ("strategy", None)):
        device = groups[group].get("device")
        if device != automatic and not _DEVICES.fullmatch(str(device)):
            words = "null" if automatic is None else automatic
            yield f"{group}.device={device} is no device: choose {words}, cpu, cuda or cuda:0"
    if str(strategy.get("device")).startswith("cuda") and count_gpus() == 0:
        yield f"strategy.device={strategy['device']}, but there is no GPU: set it to null or cpu"


def _check_minima(strategy: Settings, clients: int) -> None:
    """Check that the strategy does not wait for more clients than there will ever be.

    Raises
    ------
    ConfigurationError
        If it does.
    """
    for key in ("min_available_nodes", "min_train_nodes", "min_evaluate_nodes"):
        if strategy.get(key, 0) > clients:
            raise ConfigurationError(
                f"strategy.{key}={strategy[key]}, but there are {clients} clients, and the run "
                "would wait for the others: choose no more than there are"
            )


def _check_files(dataset: Settings) -> None:
    target = str(dataset["_target_"])
    if target == "fedpw_flwr.lab.data.archives.archives":
        check_archives(dataset["domains"], dataset["folder"])
    elif target == "fedpw_flwr.lab.data.named_sets.named_set":
        options = ("archives_folder", "download", "syn")
        given = {key: dataset[key] for key in options if key in dataset}
        check_named_set(dataset["domains"], dataset["folder"], **given)


def _check_gpus(runtime: RuntimeSettings) -> None:
    """Check that a client gets its share of a GPU: Flower would say so after a minute.

    Raises
    ------
    ConfigurationError
        If there is none, or not as many as one client takes.
    """
    # What a cluster has, only the cluster knows.
    if runtime.gpus_per_client == 0 or runtime.ray_address is not None:
        return
    there = count_gpus()
    if there is not None and there < runtime.gpus_per_client:
        found = "no GPU" if there == 0 else f"{there} GPUs"
        raise ConfigurationError(
            f"runtime.gpus_per_client={runtime.gpus_per_client:g}, but this machine has {found} "
            "that clients could use: set runtime.gpus_per_client=0 to train on the processor, or "
            "see whether nvidia-smi lists them and CUDA_VISIBLE_DEVICES hides none"
        )
