"""What the command prepares is what each process would have built."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fedpw_flwr.lab import experiment as module
from fedpw_flwr.lab.config.configuration import (
    PREPARED_VARIABLE,
    compose_configuration,
    resolved_yaml,
)
from fedpw_flwr.lab.data.partition import ClientShare
from fedpw_flwr.lab.experiment import (
    Experiment,
    build_experiment,
    experiment_of,
    prepare_experiment,
)

OVERRIDES = "seed=5 model.width=2 dataset.domains=[scans,textured] partition=by_domain"


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Experiment]:
    """A built experiment, prepared for the processes of this environment."""
    built = build_experiment(compose_configuration("config", OVERRIDES))
    file = tmp_path / "prepared"
    assert prepare_experiment(built, file, "config", OVERRIDES)
    monkeypatch.setenv(PREPARED_VARIABLE, str(file))
    experiment_of.cache_clear()
    yield built
    experiment_of.cache_clear()


def test_a_prepared_experiment_equals_the_one_that_was_built(prepared: Experiment) -> None:
    taken = experiment_of("config", OVERRIDES)
    assert resolved_yaml(taken.configuration) == resolved_yaml(prepared.configuration)
    assert (taken.seed, taken.rounds) == (prepared.seed, prepared.rounds)
    assert (taken.client, taken.runtime) == (prepared.client, prepared.runtime)
    for share, built in zip(taken.shares, prepared.shares, strict=True):
        assert (share.client_id, share.domain) == (built.client_id, built.domain)
        assert torch.equal(share.train.images, built.train.images)
        assert torch.equal(share.train.labels, built.train.labels)
    for domain, built_domain in zip(taken.data.domains, prepared.data.domains, strict=True):
        assert domain.name == built_domain.name
        assert torch.equal(domain.test.images, built_domain.test.images)
        assert torch.equal(domain.test.labels, built_domain.test.labels)
    weights = prepared.new_model().state_dict()
    assert all(torch.equal(w, weights[n]) for n, w in taken.new_model().state_dict().items())
    taken.check()


def test_a_prepared_experiment_is_taken_without_reading_data_or_composing(
    prepared: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_arguments: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(module, "build_experiment", forbidden)
    monkeypatch.setattr(module, "compose_configuration", forbidden)
    assert experiment_of("config", OVERRIDES).seed == 5


def test_other_overrides_are_composed_as_if_nothing_were_prepared(prepared: Experiment) -> None:
    assert experiment_of("config", OVERRIDES.replace("seed=5", "seed=6")).seed == 6


def test_a_configuration_that_looks_like_an_interpolation_is_not_handed_over(
    tmp_path: Path,
) -> None:
    configuration = copy.deepcopy(compose_configuration("config", OVERRIDES))
    OmegaConf.set_readonly(configuration, False)
    configuration.strategy.name = r"\${seed}"
    assert configuration.strategy.name == "${seed}"
    built = build_experiment(configuration)
    assert not prepare_experiment(built, tmp_path / "prepared", "config", OVERRIDES)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved_is_left_to_each_process(prepared: Experiment, tmp_path: Path) -> None:
    assert not prepare_experiment(prepared, tmp_path / "missing" / "file", "config", OVERRIDES)
    strange = ClientShare(0, "elsewhere", prepared.shares[0].train)
    odd = dataclasses.replace(prepared, shares=(strange,))
    assert not prepare_experiment(odd, tmp_path / "odd", "config", OVERRIDES)


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        (
            "import fedpw_flwr.lab.command\n"
            "from fedpw_flwr.lab.config.configuration import compose_configuration, count_clients\n"
            "assert count_clients(compose_configuration()) == 8",
            {"torch", "flwr", "ray", "datasets", "sklearn", "scipy", "matplotlib", "pandas"},
        ),
        (
            "from fedpw_flwr.lab.data.embedded_digits import embedded_digits; embedded_digits()",
            {"sklearn", "scipy", "matplotlib", "pandas", "datasets", "torchvision"},
        ),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str, heavy: set[str]) -> None:
    code += f"\nimport sys; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
