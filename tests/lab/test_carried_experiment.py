"""What the command hands to the workers is what each would have built."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from omegaconf import OmegaConf

from fedpw_flwr.lab import experiment as module
from fedpw_flwr.lab.config.configuration import (
    ConfigurationError,
    compose_configuration,
    resolved_yaml,
)
from fedpw_flwr.lab.experiment import (
    Experiment,
    build_experiment,
    carried,
    experiment_of,
)

OVERRIDES = "seed=5 model.width=2 dataset.domains=[scans,textured] partition=by_domain"


@pytest.fixture
def carried_along() -> Iterator[Experiment]:
    """A built experiment, which another process was handed; this one plays it."""
    built = build_experiment(compose_configuration("config", OVERRIDES))
    # As Ray does: arrays apart, which is where processes share memory.
    apart: list[pickle.PickleBuffer] = []
    content = pickle.dumps(carried(built, "config", OVERRIDES), 5, buffer_callback=apart.append)
    assert len(content) < 50_000
    provide = pickle.loads(content, buffers=[buffer.raw().toreadonly() for buffer in apart])
    withdraw = provide()
    yield built
    withdraw()


def test_a_carried_experiment_equals_the_one_that_was_built(carried_along: Experiment) -> None:
    taken = experiment_of("config", OVERRIDES)
    assert resolved_yaml(taken.configuration) == resolved_yaml(carried_along.configuration)
    assert (taken.seed, taken.rounds) == (carried_along.seed, carried_along.rounds)
    assert (taken.client, taken.runtime) == (carried_along.client, carried_along.runtime)
    for share, built in zip(taken.shares, carried_along.shares, strict=True):
        assert (share.client_id, share.domain) == (built.client_id, built.domain)
        assert torch.equal(share.train.features, built.train.features)
        assert torch.equal(share.train.labels, built.train.labels)
    for domain, built_domain in zip(taken.data.domains, carried_along.data.domains, strict=True):
        assert domain.name == built_domain.name
        assert torch.equal(domain.test.features, built_domain.test.features)
        assert torch.equal(domain.test.labels, built_domain.test.labels)
    weights = carried_along.new_model().state_dict()
    assert all(torch.equal(w, weights[n]) for n, w in taken.new_model().state_dict().items())
    taken.check()


def test_a_carried_experiment_is_taken_without_reading_data_or_composing(
    carried_along: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_arguments: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(module, "build_experiment", forbidden)
    monkeypatch.setattr(module, "compose_configuration", forbidden)
    assert experiment_of("config", OVERRIDES).seed == 5


def test_other_overrides_are_composed_as_if_nothing_were_carried(carried_along: Experiment) -> None:
    assert experiment_of("config", OVERRIDES.replace("seed=5", "seed=6")).seed == 6


def test_a_text_that_looks_like_an_interpolation_stays_what_it_is() -> None:
    configuration = copy.deepcopy(compose_configuration("config", OVERRIDES))
    OmegaConf.set_readonly(configuration, False)
    configuration.strategy.name = r"\${seed}"
    assert configuration.strategy.name == "${seed}"
    withdraw = carried(build_experiment(configuration), "config", "odd")()
    assert experiment_of("config", "odd").configuration.strategy.name == "${seed}"
    withdraw()


def test_what_was_carried_is_withdrawn_by_what_it_returns() -> None:
    built = build_experiment(compose_configuration("config", OVERRIDES))
    withdrawn = carried(built, "", "a run")()
    assert experiment_of("", "a run").seed == 5
    withdrawn()
    with pytest.raises(ConfigurationError):
        experiment_of("", "a run")


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
