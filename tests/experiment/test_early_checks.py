"""What can be refused without data is refused by the real command before anything is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedpw_flwr.experiment.configuration import (
    ConfigurationError,
    compose_configuration,
    with_absolute_folders,
)
from fedpw_flwr.experiment.early_checks import check_early, warning_of_slow_arithmetic
from fedpw_flwr.experiment.hardware import count_gpus, multiplies_bfloat16

COMMANDS = Path(sys.executable).parent
HEAVY = ("torch", "flwr", "ray", "torchvision", "datasets")


def _typed(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command where importing anything heavy, as Flower does, ends with status 77."""
    guard = folder / "guard"
    guard.mkdir(exist_ok=True)
    for module in HEAVY:
        (guard / f"{module}.py").write_text("import os; os._exit(77)")
    return subprocess.run(
        [COMMANDS / "fedpw", *words, 'hydra.run.dir="run ü"'],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(guard), *sys.path]), "CUDA_VISIBLE_DEVICES": ""}
        | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("strategy.beta=1.5", "strategy.beta must be a number above 0 and at most 1, got 1.5"),
        ("strategy=qfedavg strategy.q=-0.5", "strategy.q must be a number of at least 0"),
        ("client.batch_size=-2", "client.batch_size must be an integer of at least 1, got -2"),
        ("seed=18446744073709551616", "seed must be 0 or more and at most 2**64 - 1"),
        ("runtime.gpus_per_client=0.5", "runtime.gpus_per_client=0.5, but this machine has no GPU"),
        ("experiment=digits dataset.archives_folder=/nowhere", "set dataset.archives_folder to"),
        ("dataset.folder=~/pictures", """Type 'dataset.folder="~/pictures"'"""),
    ],
)
def test_the_command_names_the_key_and_imports_and_starts_nothing(
    tmp_path: Path, words: str, message: str
) -> None:
    done = _typed(tmp_path, *words.split())
    assert message in " ".join(done.stderr.split()), done.stderr + done.stdout
    assert done.returncode == 1
    assert "starting Flower" not in done.stdout
    assert not list(tmp_path.glob("run*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("strategy.max_weight=0.5", "strategy.max_weight must be a number of at least 1"),
        ("strategy.upload=packed strategy.adjustment=server", "strategy.adjustment=client"),
        ("strategy=fedadam strategy.tau=0", "strategy.tau must be a number above 0, got 0"),
        ("strategy=fedheal strategy.tau=1", "strategy.tau must be a number of at least 0 and bel"),
        ("strategy=fedprox strategy.proximal_mu=x", "strategy.proximal_mu must be a number"),
        ("strategy=afl strategy.lambda_step=nan", "strategy.lambda_step must be a number"),
        ("strategy=term strategy.t=inf", "strategy.t must be a number that is finite, got inf"),
        ("client.learning_rate=-0.1", "client.learning_rate must be above 0"),
        ("runtime.gpus_per_client=1.5", "runtime.gpus_per_client=1.5: above 1 it must be a whole"),
        ("runtime.device=gpu", "runtime.device=gpu is no device: choose auto, cpu, cuda or cuda:0"),
        ("partition=dirichlet partition.alpha=0", "partition.alpha must be a number above 0"),
        ("partition=by_domain partition.share=0.7", "partition: share is the part of a domain"),
        (
            "partition=pat2 dataset=cifar10 partition.classes_per_client=11",
            "num_classes=10: choose",
        ),
        ("+strategy.min_train_nodes=9", "strategy.min_train_nodes=9, but there are 8 clients"),
        ("model.width=0", "model.width must be a whole number of at least 1, got 0"),
        ("model=mlp model.image_size=28", "model.image_size=28, but pictures have dataset.image_"),
        ("model._target_=my_nets.Net", "there is no module my_nets: correct the name, or add"),
        ("experiment=four_domains dataset.folder=/nowhere", "there is no folder /nowhere"),
        ("dataset=cifar100 partition=iid", "cifar100 is not in"),
        ("dataset=digits partition=iid dataset.domains=[mnist,emnist]", "dataset.domains has ['em"),
        ("dataset=cifar10 partition=iid dataset.mean=[0.5]", "dataset.mean has 1 numbers for"),
    ],
)
def test_a_value_is_refused_before_any_data_are_read(
    tmp_path: Path, words: str, message: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        check_early(with_absolute_folders(compose_configuration("config", words), tmp_path))
    assert message in str(refused.value)


def test_what_passes_goes_on_to_flower(tmp_path: Path) -> None:
    assert _typed(tmp_path, "strategy.beta=1.0", "seed=18446744073709551615").returncode == 77


def test_a_cluster_may_have_the_gpus_that_this_machine_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    check_early(
        compose_configuration(
            "config", "runtime.gpus_per_client=0.5 runtime.ray_address=10.0.0.3:6379"
        )
    )
    with pytest.raises(ConfigurationError, match="see whether nvidia-smi lists them"):
        check_early(compose_configuration("config", "runtime.gpus_per_client=0.5"))


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_gpus_that_are_hidden_are_none(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert count_gpus() in (0, None)


def test_gpus_are_counted_as_ray_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerators = pytest.importorskip("ray._private.accelerators.nvidia_gpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    counted = count_gpus()
    manager = accelerators.NvidiaGPUAcceleratorManager
    assert counted is None or counted == manager.get_current_node_num_accelerators()


@pytest.mark.parametrize(
    ("line", "has_it"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 avx512_vnni", True),
        ("flags\t\t: fpu avx2 amx_tile amx_bf16 amx_int8", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", False),
        ("Features\t: fp asimd i8mm bf16", True),
        ("Features\t: fp asimd", False),
        ("model name\t: bf16", None),
    ],
)
def test_the_processor_says_whether_it_multiplies_bfloat16(
    tmp_path: Path, line: str, has_it: bool | None
) -> None:
    description = tmp_path / "cpuinfo"
    description.write_text(f"processor\t: 0\n{line}\nbugs\t\t: spectre\n")
    assert multiplies_bfloat16(description) is has_it
    assert multiplies_bfloat16(tmp_path / "no such file") is None


@pytest.mark.parametrize(
    ("overrides", "has_it", "warned"),
    [
        ("client.precision=bfloat16", False, True),
        ("client.precision=bfloat16", True, False),
        ("client.precision=bfloat16", None, False),
        ("client.precision=float32", False, False),
        ("client.precision=bfloat16 runtime.gpus_per_client=0.5", False, False),
        ("client.precision=bfloat16 runtime.gpus_per_client=1 runtime.device=cpu", False, True),
        ("client.precision=bfloat16 runtime.ray_address=10.0.0.3:1", False, False),
    ],
)
def test_slow_arithmetic_is_told_where_it_is_slow(
    overrides: str, has_it: bool | None, warned: bool
) -> None:
    warning = warning_of_slow_arithmetic(compose_configuration("config", overrides), has_it)
    assert (warning is not None) is warned
    if warning is not None:
        assert "client.precision=bfloat16" in warning
        assert "Set client.precision=float32" in warning
