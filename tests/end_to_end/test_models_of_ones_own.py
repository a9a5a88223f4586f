"""A network whose layers share weights runs, is saved, goes on, and is evaluated."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import assert_same_model, typed

pytestmark = pytest.mark.long

MODULE = """
import torch
from torch import nn

class Unrolled(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 6, 3, stride=2, padding=1)
        step = nn.Conv2d(6, 6, 3, padding=1)
        self.steps = nn.ModuleList([step, step])  # one layer, two names
        self.register_buffer("middle", step.weight.detach()[:, :, 1, 1])
        self.register_buffer("bias_too", step.bias.detach())
        self.head = nn.Linear(6, num_classes)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for step in self.steps:
            x = x + torch.relu(step(x))
        return self.head(x.mean((2, 3)))
"""


def test_a_network_with_tied_layers_runs_goes_on_and_is_evaluated(tmp_path: Path) -> None:
    (tmp_path / "unrolled.py").write_text(MODULE)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "unrolled.yaml").write_text("_target_: unrolled.Unrolled\n")
    training = ("model=unrolled", "client.epochs=1", "partition=by_domain", "rounds=2")
    sizes = ("partition.clients_per_domain=1", "partition.train_per_client=41", "seed=3")
    given = ("--config-dir", "conf", *training, *sizes)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    run = partial(typed, folder=tmp_path, PYTHONPATH=path)
    run("fedpw", *given, "hydra.run.dir=run")
    run("fedpw", "--config-dir", "conf", "resume=run", "rounds=3")
    run("fedpw", *given, "rounds=3", "hydra.run.dir=whole")

    model = load_file(tmp_path / "run" / "model.safetensors")
    assert torch.equal(model["steps.0.weight"], model["steps.1.weight"])
    assert torch.equal(model["middle"], model["steps.0.weight"][:, :, 1, 1])
    assert torch.equal(model["bias_too"], model["steps.1.bias"])
    assert_same_model(tmp_path / "run", tmp_path / "whole")

    said = json.loads(run("fedpw-evaluate", "run", "--json").stdout)
    assert said["round"] == 3
    assert said["accuracy"] == said["recorded_accuracy"]
