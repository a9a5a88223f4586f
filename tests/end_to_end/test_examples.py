"""Every command that an example's README shows, run as it stands there on Flower's simulation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.commands import free_ports
from support.hospitals import write_hospitals
from support.workplace import Workplace, copied

from fedpw_flwr.lab.runs.run_folder import RunFolder

pytestmark = pytest.mark.long

CLIENTS = 10


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    with copied(tmp_path_factory.mktemp("examples")) as workplace:
        yield workplace


def follow(workplace: Workplace, example: str) -> list[str]:
    return workplace.follow(f"examples/{example}/README.md")


def metrics_of(workplace: Workplace, run: str) -> dict[str, list[dict[str, Any]]]:
    loaded: dict[str, list[dict[str, Any]]] = json.loads(
        (workplace.folder / "outputs" / run / "metrics.json").read_text()
    )
    return loaded


def model_of(workplace: Workplace, run: str) -> dict[str, torch.Tensor]:
    file = workplace.folder / "outputs" / run / "final_model.safetensors"
    loaded: dict[str, torch.Tensor] = load_file(file)
    return loaded


def late(records: Sequence[Mapping[str, Any]], figure: str) -> float:
    """Take a fairness figure of the accuracy as the READMEs do, over the last three rounds."""
    return fmean(record[f"fairness-{figure}"] for record in records[-3:])


def test_quickstart_runs_as_flowers_fedavg_and_two_lines_later_as_fedpw(
    workplace: Workplace,
) -> None:
    plain_log, fedpw_log = follow(workplace, "quickstart-pytorch")
    plain, fedpw = (metrics_of(workplace, f"quickstart-{name}") for name in ("fedavg", "fedpw"))

    for metrics in (plain, fedpw):
        assert len(metrics["train"]) == len(metrics["evaluate"]) == 15
        assert all(record["fairness-clients"] == CLIENTS for record in metrics["evaluate"])
        assert late(metrics["evaluate"], "mean") > 0.85
    assert "fedpw-weight" not in plain["train"][0]
    assert "Starting FedPW" not in plain_log
    for record in fedpw["train"]:
        assert len(record["fedpw-weight"]) == CLIENTS
        assert sum(record["fedpw-weight"]) == pytest.approx(1)
        assert record["fedpw-quarantined"] == record["fedpw-failed"] == 0
    assert "Starting FedPW" in fedpw_log

    # The two clients that FedAvg serves badly.
    assert late(fedpw["evaluate"], "worst") > late(plain["evaluate"], "worst") + 0.03
    assert late(fedpw["evaluate"], "std") < late(plain["evaluate"], "std")
    assert f"worst {late(fedpw['evaluate'], 'worst'):6.1%}" in fedpw_log

    models = [model_of(workplace, f"quickstart-{name}") for name in ("fedavg", "fedpw")]
    assert models[0].keys() == models[1].keys() >= {"conv1.weight", "fc2.bias"}
    assert not torch.equal(models[0]["fc2.weight"], models[1]["fc2.weight"])


def test_legacy_project_runs_with_fedpw_and_as_it_was_before(workplace: Workplace) -> None:
    fedpw_log, plain_log = follow(workplace, "legacy-numpyclient")
    assert "Parameter adjustment: on the clients" in fedpw_log
    assert "FedPW settings" not in plain_log

    for name in ("legacy-fedpw", "legacy-fedavg"):
        lines = (workplace.folder / "outputs" / name / "metrics.jsonl").read_text().splitlines()
        rounds = [json.loads(line) for line in lines]
        assert len(rounds) == 20
        assert all(record["fairness-clients"] == CLIENTS for record in rounds)
        assert late(rounds, "mean") > 0.88
        assert late(rounds, "worst") > 0.75
        assert model_of(workplace, name)["fc1.weight"].shape == (64, 64)


def test_fedpw_composes_with_server_optimizer_proximal_term_and_clipping(
    workplace: Workplace,
) -> None:
    adam_log, _, clipping_log = follow(workplace, "compose")
    assert "FedOpt settings" in adam_log
    assert "fixedclipping_mod: parameters are clipped by value: 4.0" in clipping_log
    for name in ("adam", "fedprox", "clipping"):
        metrics = metrics_of(workplace, f"compose-{name}")
        assert len(metrics["train"]) == len(metrics["evaluate"]) == 15
        for record in metrics["train"]:
            assert len(record["fedpw-weight"]) == CLIENTS
            assert record["fedpw-quarantined"] == record["fedpw-failed"] == 0
        assert late(metrics["evaluate"], "mean") > 0.85
        assert all(
            tensor.isfinite().all() for tensor in model_of(workplace, f"compose-{name}").values()
        )


def test_adapters_of_a_language_model_learn_the_styles_of_four_clients(
    workplace: Workplace,
) -> None:
    pytest.importorskip("peft", reason="needs pip install --group lora")
    *_, log = follow(workplace, "lora")
    folder = workplace.folder / "outputs" / "lora"
    perplexities = json.loads((folder / "perplexities.json").read_text())
    before = perplexities["before"]
    for name in ("FedAvg", "FedPW"):
        found = perplexities[name]
        assert all(found[style] < 0.5 * before[style] for style in before)
        shown = [*found.values(), max(found.values())]
        assert f"{name:<10}" + "".join(f"{value:10.1f}" for value in shown) in log
        adapters = load_file(folder / f"{name.lower()}.safetensors")
        assert all(".lora_" in array for array in adapters)
        assert any(adapters[array].any() for array in adapters if ".lora_B." in array)
    # The client with the least text.
    assert max(perplexities["FedPW"].values()) < 0.8 * max(perplexities["FedAvg"].values())
    assert max(perplexities["FedAvg"], key=perplexities["FedAvg"].get) == "dialogue"


def test_own_model_and_data_need_only_configuration(workplace: Workplace) -> None:
    (log,) = follow(workplace, "custom-model")
    folder = RunFolder(workplace.folder / "outputs" / "custom-model")
    summary = folder.read_summary()
    assert summary.rounds == 12
    assert set(summary.accuracy) == {"paper", "china", "flower"}
    assert summary.final.mean > 0.7
    assert summary.quarantined == summary.failed == 0
    assert "my_model.SeparableNet" in (folder.path / "config.yaml").read_text()
    assert "classifier.weight" in load_file(folder.path / "model.safetensors")
    assert {path.name for path in folder.path.iterdir()} >= {"accuracy.png", "metrics.jsonl"}
    assert f"{100 * summary.final.worst:.1f}" in log


def test_hospitals_run_as_flowers_fedavg_and_two_lines_later_as_fedpw(
    workplace: Workplace, tmp_path: Path
) -> None:
    write_hospitals(tmp_path)
    variables = {
        "HEART": str(tmp_path),
        "PORT": str(free_ports(5)),
        "FLWR_HOME": str(workplace.folder / "outputs" / "hospitals" / "flwr"),
    }
    place = replace(workplace, environment={**workplace.environment, **variables})
    plain_log, fedpw_log, _ = follow(place, "hospitals")
    for name, log in (("fedavg", plain_log), ("fedpw", fedpw_log)):
        metrics = metrics_of(place, f"hospitals/{name}")
        assert len(metrics["train"]) == len(metrics["evaluate"]) == 4
        assert all(record["fairness-clients"] == 4 for record in metrics["evaluate"])
        assert late(metrics["evaluate"], "mean") > 0.7
        assert f"worst {late(metrics['evaluate'], 'worst'):6.1%}" in log
        assert ("fedpw-weight" in metrics["train"][0]) is (name == "fedpw")
