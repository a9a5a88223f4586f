"""Claims about the configuration: composed the same everywhere, wrong keys and values refused."""

import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fedpw_flwr.lab.config.configuration import (
    ConfigurationError,
    compose_configuration,
    resolved_yaml,
    run_fingerprint,
    runtime_settings,
    with_absolute_folders,
    with_changes,
)
from fedpw_flwr.lab.experiment import build_experiment


def test_same_arguments_compose_once_a_process() -> None:
    first = compose_configuration("config", "seed=5")
    assert compose_configuration("config", "seed=5") is first


def test_composed_configuration_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="read-only"):
        compose_configuration().seed = 3


def test_overrides_survive_the_way_through_one_string() -> None:
    overrides = ["strategy.name='a b, \"c\" [d]=é'", "seed=7"]
    configuration = compose_configuration("config", shlex.join(overrides))
    assert configuration.strategy.name == 'a b, "c" [d]=é'
    assert configuration.seed == 7


def test_composing_leaves_another_hydra_of_the_process_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("answer: 42\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        compose_configuration("config", "seed=11")
        assert GlobalHydra.instance().is_initialized()
        assert compose("mine").answer == 42


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("rounds=x", "rounds"),
        ("rounds=0", "rounds must be a whole number of at least 1, got 0"),
        ("rounds=null", "rounds must be a whole number of at least 1, got None"),
        ("seed=-1", "seed must be a whole number of at least 0 and at most"),
        ("foo=1", "^there is no setting foo: correct its name"),
        ("+foo=1", "^foo is no setting of a run: leave it out. There are seed, rounds, resume"),
        ("client.epoch=3", "there is no setting client.epoch"),
        ("+runtime.cpus=1", "^runtime.cpus is no setting"),
        ("runtime.device=gpu", "runtime.device must be auto, or a device such as cpu, cuda or cud"),
        ("+strategy.device=gpu", "strategy.device must be a device such as cpu, cuda or cuda:0, o"),
        ("runtime.cpus_per_client=abc", "cpus_per_client must be a whole number"),
        ("runtime.cpus_per_client=0", "cpus_per_client must be a whole number of at least 1"),
        ("runtime.gpus_per_client=-1", "gpus_per_client must be a number of at least 0"),
        ("runtime.cpus_per_client=4 runtime.total_cpus=2", "total_cpus is 2.*raise the first"),
        ("runtime.round_timeout=0", "round_timeout must be a number above 0"),
        ("strategy.beta=0", "strategy.beta must be a number above 0 and at most 1, got 0"),
        ("+strategy.betta=0.1", "strategy.betta is no setting of FedPW: leave it out"),
        ("client.momentum=2", "client.momentum must be a number of at least 0 and below 1"),
        ("model=resnet18 model.depth=50", "model.depth must be one of 10, 12, 18, 20, 34, got 50"),
        ("model.normalisation=layer", "model.normalisation must be one of batch, group, none"),
        ("strategy=term strategy.t=inf", "strategy.t must be a number that is finite, got inf"),
        ("dataset=digits dataset.domains=[mnist,mnist]", "dataset.domains must be a list with at"),
        (
            "dataset=cifar10 dataset.std=[0.2,0.0,0.3]",
            "above 0, and no name twice, or null, got [0.2, 0.0, 0.3",
        ),
        ("strategy._target_=fedpw_flwr.baselins.FedAvg", "one of FedPW, FedAvg, EqualFedAvg"),
        ("strategy._target_=fedpw_flwr.lab.models.cnn.SmallCNN", "package has no such strategy"),
        ("dataset._target_=fedpw_flwr.lab.data.embedded_digits.digits", "no such dataset"),
        ("partition._target_=fedpw_flwr.lab.data.partition.Dirichlets", "no such partition"),
        ("stop.patience=0", "stop.patience must be a whole number of at least 1, or null"),
        (
            "+stop.patients=5",
            "stop.patients is no setting of a run: leave it out. There are me",
        ),
        ("tracking=[tensorboard,comet]", "tracking must be tensorboard, mlflow, wandb, a list of"),
        ("partition.clients_per_domain=0", "clients_per_domain must be a whole number of at least"),
        ("partition=dirichlet partition.alpha=nan", "partition.alpha must be a number above 0"),
        ("partition.test_share=1.0", "test_share must be a number of at least 0 and below 1"),
        ("dataset.domains=[scan]", "each one of scans, textured, blurred, fonts, and no name"),
        ("dataset.image_size=7", "dataset.image_size must be a whole number of at least 8, got 7"),
        ("dataset=digits dataset.syn=drawn", "dataset.syn must be one of rendered, folder, got"),
        ("dataset=digits +dataset.test_share=1.0", "test_share must be a number above 0 and below"),
        ("resume=[5]", "resume must be a folder, got [5"),
        ("strategy=nope", "fedavg"),
        ("strategy.beta='${nope}'", "Interpolation key 'nope' not found"),
        (
            "experiment=four_domains",
            "^dataset.folder is not set: it is the folder that holds mnist.npz, usps.npz, "
            "svhn.npz, mnistm.npz; give it on the command line, as in "
            "dataset.folder=/path/to/archives$",
        ),
        (
            "strategy=fedheal strategy.tau=???",
            "^strategy.tau is not set: give it on the command line, as in strategy.tau=...$",
        ),
        ("seed=[1", "seed"),
        ("seed='1", "cannot be split"),
    ],
)
def test_wrong_key_or_value_is_refused_by_name(overrides: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match="(?s)" + message.replace("[", r"\[")):
        compose_configuration("config", overrides)


def test_a_number_of_the_runtime_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    words = "runtime.total_cpus='${oc.env:SLURM_CPUS_PER_TASK}'"
    assert runtime_settings(compose_configuration("config", shlex.join([words]))).total_cpus == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("runtime.device=cuda:999 runtime.gpus_per_client=1", "runtime: device='cuda:999'"),
        ("experiment=four_domains dataset.folder=/nowhere", "dataset: .*/nowhere"),
    ],
)
def test_a_part_that_cannot_be_built_is_named_before_training(overrides: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_experiment(compose_configuration("config", overrides)).check()


def test_relative_folders_are_tied_to_where_the_command_was_typed(tmp_path: Path) -> None:
    typed = ["experiment=four_domains", 'dataset.folder="it\'s/data"']
    configuration = compose_configuration("config", shlex.join(typed))
    absolute = with_absolute_folders(configuration, tmp_path)
    assert absolute.dataset.folder == str(tmp_path / "it's" / "data")
    assert configuration.dataset.folder == "it's/data"


def test_resolved_configuration_can_be_read_back() -> None:
    configuration = compose_configuration()
    assert OmegaConf.create(resolved_yaml(configuration)) == configuration


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds", "write it as KEY=VALUE"),
        ("roundz=3", "no key 'roundz'"),
        ("strategy=fedavg", "a finished choice of the run's"),
    ],
)
def test_changes_of_a_run_that_it_cannot_take_are_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        with_changes(compose_configuration(), [override])


def test_a_run_goes_on_with_other_values() -> None:
    before = compose_configuration()
    changed = with_changes(before, ["rounds=9", "runtime.device=cpu"])
    assert (changed.rounds, changed.runtime.device) == (9, "cpu")
    assert before.rounds == 30


@pytest.mark.parametrize(
    ("override", "now"),
    [
        ("model._target_=fedpw_flwr.models.resnet.ResNet10", "fedpw_flwr.lab.models.resnet"),
        ("partition._target_=fedpw_flwr.data.partition.ByDomain", "fedpw_flwr.lab.data.partition"),
    ],
)
def test_a_target_under_its_former_name_is_what_it_is_now_and_the_same_run(
    override: str, now: str
) -> None:
    group, _, target = override.partition("._target_=")
    present = f"{group}._target_={now}.{target.rpartition('.')[2]}"
    former, current = (compose_configuration("config", word) for word in (override, present))
    assert former[group]["_target_"] == current[group]["_target_"]
    assert run_fingerprint(former) == run_fingerprint(current)
    assert run_fingerprint(former)[group]["_target_"] == target
