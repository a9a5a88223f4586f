"""What the command can refuse, or has to say, before anything is imported or started.

Importing PyTorch and starting workers takes ten seconds on a small machine. Nobody should wait for
that to read that ``strategy.beta=7`` is too large, or a folder mistyped. What the machine can do is
told without them, too.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fedpw_flwr.lab.config.configuration import (
    ConfigurationError,
    RuntimeSettings,
    count_clients,
    group_settings,
    named_part,
    runtime_settings,
    stop_settings,
    trackers_of,
)
from fedpw_flwr.lab.config.setting_rules import GROUPS
from fedpw_flwr.lab.data.locations import check_archives, check_heart_disease, check_named_set

Settings = Mapping[str, Any]

_CPUINFO = Path("/proc/cpuinfo")
_AMD_DRIVER = Path("/dev/kfd")
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}

_FIGURES = ("mean_accuracy", "std_accuracy", "worst_accuracy", "pooled_auc")
_FAMILIES = ("accuracy", "loss", "auc", "clients", "client_accuracy", "train", "evaluate")
"""What a run may be judged by: figures, and kinds of them by name."""


def check_early(configuration: DictConfig) -> None:
    """Check a configuration with absolute folders, without PyTorch, Flower and the data themselves.

    ConfigurationError, with the key and what to do, if a value cannot be used, values contradict
    each other, the data are not where they should be, or there is no GPU for the clients.
    """
    groups = {group: group_settings(configuration, group) for group in GROUPS}
    clients = count_clients(configuration)
    # Not where a configuration is composed: the module of a strategy may be the server's alone.
    wrong = [
        f"{group}._target_={target}: there is no module {package}: correct the name, or add the "
        "folder that holds it to PYTHONPATH"
        for group, target in ((group, str(groups[group]["_target_"])) for group in GROUPS)
        if not (package := target.partition(".")[0]).isidentifier() or find_spec(package) is None
    ]
    wrong = wrong or [*_contradictions(groups, clients), *_end_out_of_reach(configuration)]
    wrong += [
        f'tracking={name} needs its library: pip install "fedpw-flwr[{name}]"'
        for name in trackers_of(configuration)
        if find_spec(name) is None
    ]
    if wrong:
        raise ConfigurationError("\n".join(wrong))
    with named_part("dataset"):
        _check_files(groups["dataset"])
    _check_gpus(runtime_settings(configuration))


def warning_of_slow_arithmetic(configuration: DictConfig) -> str | None:
    """Return why training in bfloat16 will be slow on this processor; None where it will not."""
    runtime = runtime_settings(configuration)
    on_gpu = runtime.gpus_per_client > 0 and runtime.device != "cpu"
    elsewhere = runtime.ray_address is not None
    in_bfloat16 = configuration.client.get("precision") == "bfloat16"
    if not in_bfloat16 or on_gpu or elsewhere or multiplies_bfloat16() is not False:
        return None
    return (
        "client.precision=bfloat16 trains about ten times slower than float32 here: this processor "
        "has neither avx512_bf16 nor AMX. Set client.precision=float32, or train on a GPU"
    )


def _contradictions(groups: Mapping[str, Settings], clients: int) -> Iterator[str]:
    """Return which values do not go together, though each of them is right."""
    strategy, dataset = groups["strategy"], groups["dataset"]
    # What clients send
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
    # Losses that steer training
    if strategy.get("loss_source") == "evaluate" and groups["partition"].get("test_share") == 0:
        yield (
            "strategy.loss_source=evaluate takes the loss on images that clients keep, and they "
            "keep none, so training would be steered by the test sets: set partition.test_share=0.2"
        )
    # Classes and channels of the images
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
            f"model.image_size={sizes[0]}, but images have dataset.image_size={sizes[1]}: leave "
            "the first out, and it follows the second"
        )
    # Nodes and devices
    for key in ("min_available_nodes", "min_train_nodes", "min_evaluate_nodes"):
        if strategy.get(key, 0) > clients:
            yield (
                f"strategy.{key}={strategy[key]}, but there are {clients} clients, and the run "
                "would wait for the others: choose no more than there are"
            )
    device = strategy.get("device")
    if str(device).startswith("cuda") and count_gpus() == 0:
        yield f"strategy.device={device}, but there is no GPU: set it to null or cpu"


def _end_out_of_reach(configuration: DictConfig) -> Iterator[str]:
    """Return why a run would never end early, or at once."""
    stop, runtime = stop_settings(configuration), runtime_settings(configuration)
    if stop is None:
        return
    metric, target = stop["metric"], stop["target"]
    family, _, member = metric.partition("/")
    domains = configuration.dataset.get("domains")
    if metric not in _FIGURES and not (family in _FAMILIES and member):
        yield (
            f"stop.metric={metric} is no figure of a run: choose one of {', '.join(_FIGURES)}, or "
            f"of the kinds {', '.join(f'{kind}/NAME' for kind in _FAMILIES)}"
        )
    elif (
        family in ("accuracy", "loss", "auc")
        and domains
        and member not in domains
        and not member.startswith("client_")
    ):
        yield f"stop.metric={metric}: there is no domain {member}, but {', '.join(domains)}"
    if metric.startswith("clients/") and configuration.partition.get("test_share") == 0:
        yield (
            f"stop.metric={metric} is measured on images that clients keep, and they keep none: "
            "set partition.test_share=0.2, or another stop.metric, such as train/train_loss"
        )
    if metric.startswith("train/") and runtime.evaluate_every > 1:
        yield (
            f"stop.metric={metric} may end a run after a round that is not tested: set "
            "runtime.evaluate_every=1, or choose another stop.metric"
        )
    shares = ("accuracy/", "auc/", "clients/mean", "clients/worst", "clients/best")
    if target is not None and target > 1 and metric.startswith((*shares, "mean_", "worst_")):
        yield f"stop.target={target}, but {metric} is between 0 and 1: 90 % is 0.9"


def _check_files(dataset: Settings) -> None:
    target = str(dataset["_target_"])
    if target == "fedpw_flwr.lab.data.archives.archives":
        check_archives(dataset["domains"], dataset["folder"])
    elif target == "fedpw_flwr.lab.data.heart_disease.heart_disease":
        download = bool(dataset.get("download", False))
        check_heart_disease(dataset["domains"], dataset["folder"], download=download)
    elif target == "fedpw_flwr.lab.data.named_sets.named_set":
        options = ("archives_folder", "download", "syn")
        given = {key: dataset[key] for key in options if key in dataset}
        check_named_set(dataset["domains"], dataset["folder"], **given)


def _check_gpus(runtime: RuntimeSettings) -> None:
    """Refuse a share of a GPU that is not there, before Ray is started."""
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


def count_gpus() -> int | None:
    """Return how many GPUs of NVIDIA's Ray will find here; None where that cannot be told.

    As Ray does, it asks the driver, and counts no more than ``CUDA_VISIBLE_DEVICES`` lists.
    """
    if not sys.platform.startswith("linux") or _AMD_DRIVER.exists():
        return None
    there = _count_of_driver()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    listed = [] if visible in ("", "-1", "NoDevFiles") else visible.split(",")
    return min(there, len(listed))


def _count_of_driver() -> int:
    count = ctypes.c_uint(0)
    try:
        driver = ctypes.CDLL("libnvidia-ml.so.1")
        if driver.nvmlInit_v2() != 0:
            return 0
        driver.nvmlDeviceGetCount_v2(ctypes.byref(count))
        driver.nvmlShutdown()
    except (OSError, AttributeError):
        # No such driver.
        return 0
    return count.value


def multiplies_bfloat16(cpuinfo: Path = _CPUINFO) -> bool | None:
    """Return whether the processor has instructions for bfloat16; None where that cannot be told.

    `cpuinfo` is Linux's description of the processor.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, flags = line.partition(":")
        # So they are called on x86 and on ARM.
        if name.strip() in ("flags", "Features"):
            return not _BFLOAT16_FLAGS.isdisjoint(flags.split())
    return None
