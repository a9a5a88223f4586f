"""What can be refused without data is refused by the real command before anything is imported."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedpw_flwr.lab.config import early_checks
from fedpw_flwr.lab.config.configuration import (
    ConfigurationError,
    compose_configuration,
    with_absolute_folders,
)
from fedpw_flwr.lab.config.early_checks import (
    check_early,
    count_gpus,
    multiplies_bfloat16,
    warning_of_slow_arithmetic,
)

HEAVY = ("torch", "flwr", "ray", "torchvision", "datasets")


@dataclass
class Typed:
    """What became of a command line: blanks are single ones."""

    line: str
    status: int
    said: str
    errors: str
    left: list[str]


_EACH = """
import json, os, sys
from fedpw_flwr.lab.command import main

for number, words in enumerate(json.load(sys.stdin)):
    if os.fork() == 0:
        os.mkdir(str(number))
        os.chdir(str(number))
        for stream in (1, 2):
            os.dup2(os.open(f"../{number}-{stream}", os.O_CREAT | os.O_WRONLY), stream)
        sys.argv = ["fedpw", *words]
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
"""A process that imports the command once, and runs it for each line in a fork and a folder."""


def _environment(folder: Path) -> dict[str, str]:
    """Return one in which importing anything heavy, as Flower does, ends with status 77."""
    guard = folder / "guard"
    guard.mkdir(exist_ok=True)
    for module in HEAVY:
        (guard / f"{module}.py").write_text("import os; os._exit(77)")
    path = os.pathsep.join([str(guard), *sys.path])
    return os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}


def _typed(folder: Path, lines: Sequence[str]) -> Iterator[Typed]:
    """Run the command for each line of words, each in an empty folder."""
    done = subprocess.run(
        [sys.executable, "-c", _EACH],
        cwd=folder,
        env=_environment(folder),
        input=json.dumps([shlex.split(line) for line in lines]),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    statuses = map(int, done.stdout.split())
    for number, (line, status) in enumerate(zip(lines, statuses, strict=True)):
        said, told = (" ".join((folder / f"{number}-{one}").read_text().split()) for one in (1, 2))
        left = [path.name for path in (folder / str(number)).iterdir()]
        yield Typed(line, status, said, told, left)


def test_the_command_names_the_key_and_imports_and_starts_nothing(tmp_path: Path) -> None:
    messages = {
        "strategy.beta=1.5": ["strategy.beta must be a number above 0 and at most 1, got 1.5"],
        "strategy=qfedavg strategy.q=-0.5": ["strategy.q must be a number of at least 0"],
        "client.batch_size=-2": ["client.batch_size must be a whole number of at least 1, got -2"],
        "seed=18446744073709551616": ["seed must be a whole number of at least 0 and at most 2**6"],
        "runtime.gpus_per_client=0.5": ["runtime.gpus_per_client=0.5, but this machine has no GPU"],
        "experiment=digits dataset.archives_folder=/nowhere": ["set dataset.archives_folder to"],
        "dataset.folder=~/images": ["""Type 'dataset.folder="~/images"'"""],
        """rounds=0 'hydra.run.dir="run ü"'""": ["rounds must be a whole number of at least 1"],
        "rounds=0 hydra.run.dir=.": ["rounds must be a whole number of at least 1"],
        "hydra.run.dir=/proc/kept/run": ["no run can be kept in the folder /proc/kept/run (No suc"],
        "model._target_=my_nets.Net": ["there is no module my_nets: correct the name, or add"],
        "strategy._target_=fedpw_flwr.baselines.FedNova": ["this package has no such strategy"],
        "nope=1": ["fedpw: there is no setting nope: correct its name"],
        "-m seed=1,2 hydra.sweep.dir=/proc/sweep": ["give another with hydra.sweep.dir="],
        "-m +nope=1,2": [
            "+nope=1; +nope=2: nope is no setting of a run: leave it out. There are",
            "no run was started",
        ],
        "-m strategy=fedpw,fedav": ["Could not find 'strategy/fedav'", "no run was started"],
        "-m seed=${nope}": ["Interpolation key 'nope' not found", "no run was"],
        "-m strategy.beta=0.4,-2 seed=5,6": [
            "strategy.beta=-2 seed=5; strategy.beta=-2 seed=6: strategy.beta must be a number "
            "above 0 and at most 1, got -2",
        ],
        "-m seed=2,-3 rounds=1 client.epochs=1,0": [
            "seed=2 rounds=1 client.epochs=0: client.epochs must be a whole number",
            "seed=-3 rounds=1 client.epochs=1; seed=-3 rounds=1 client.epochs=0: seed must be",
        ],
    }
    for typed in _typed(tmp_path, list(messages)):
        assert [one for one in messages[typed.line] if one not in typed.errors] == [], typed
        assert "Traceback" not in typed.errors
        assert "HYDRA_FULL_ERROR" not in typed.errors
        assert (typed.status, typed.said, typed.left) == (1, "", []), typed


def test_what_can_start_goes_on_to_flower(tmp_path: Path) -> None:
    lines = [
        "strategy.beta=1.0 seed=18446744073709551615",
        "-m strategy=fedpw,qfedavg seed=${hydra:job.num}",
    ]
    one, sweep = _typed(tmp_path, lines)
    assert (one.status, sweep.status) == (77, 77), (one, sweep)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("strategy.upload=packed strategy.adjustment=server", "strategy.adjustment=client"),
        ("runtime.gpus_per_client=1.5", "runtime.gpus_per_client=1.5: above 1 it must be a whole"),
        ("partition=by_domain partition.share=0.7", "partition: share is the part of a domain"),
        (
            "partition=pat2 dataset=cifar10 partition.classes_per_client=11",
            "but the data set has 10 classes: choose",
        ),
        (
            "dataset=cifar100 dataset.archives_folder=. partition=pat1 "
            "partition.classes_per_client=101",
            "but the data set has 100 classes: choose",
        ),
        ("+strategy.min_train_nodes=9", "strategy.min_train_nodes=9, but there are 8 clients"),
        ("model=mlp model.image_size=28", "model.image_size=28, but images have dataset.image_s"),
        ("experiment=four_domains dataset.folder=/nowhere", "there is no folder /nowhere"),
        ("dataset=cifar100 partition=iid", "cifar100 is not in"),
        ("dataset=digits partition=iid dataset.domains=[mnist,emnist]", "dataset.domains has ['em"),
        ("dataset=cifar10 partition=iid dataset.mean=[0.5]", "dataset.mean has 1 numbers for"),
        ("+strategy.loss_source=evaluate", "training would be steered by the test sets"),
        ("stop.patience=5", "they keep none: set partition.test_share=0.2, or another"),
        ("stop.target=1 stop.metric=acuracy", "is no figure of a run: choose one of mean"),
        ("stop.target=0.9 stop.metric=accuracy/scan", "there is no domain scan, but scans, textur"),
        ("stop.target=90 stop.metric=worst_accuracy", "is between 0 and 1: 90 % is 0.9"),
        (
            "stop.target=0.1 stop.metric=train/train_loss runtime.evaluate_every=2",
            "may end a run after a round that is not tested",
        ),
    ],
)
def test_a_value_is_refused_before_any_data_are_read(
    tmp_path: Path, words: str, message: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        check_early(with_absolute_folders(compose_configuration("config", words), tmp_path))
    assert message in str(refused.value)


def test_a_tracker_whose_library_is_missing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_checks, "find_spec", lambda name: None)
    configuration = compose_configuration("config", "tracking=wandb")
    with pytest.raises(ConfigurationError, match=r'pip install "fedpw-flwr\[wandb\]"'):
        check_early(with_absolute_folders(configuration, tmp_path))


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_a_cluster_may_have_the_gpus_that_this_machine_lacks_or_hides(
    monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert count_gpus() in (0, None)
    check_early(
        compose_configuration(
            "config", "runtime.gpus_per_client=0.5 runtime.ray_address=10.0.0.3:6379"
        )
    )
    with pytest.raises(ConfigurationError, match="see whether nvidia-smi lists them"):
        check_early(compose_configuration("config", "runtime.gpus_per_client=0.5"))


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
    monkeypatch: pytest.MonkeyPatch, overrides: str, has_it: bool | None, warned: bool
) -> None:
    monkeypatch.setattr(early_checks, "multiplies_bfloat16", lambda: has_it)
    warning = warning_of_slow_arithmetic(compose_configuration("config", overrides))
    assert (warning is not None) is warned
    if warning is not None:
        assert "client.precision=bfloat16" in warning
        assert "Set client.precision=float32" in warning
