"""The baseline of the client loop: federated training as research code is written.

    python benchmarks/plain_loop.py --rounds 5 -- experiment=four_domains dataset.folder=DATA

One process trains one client after another, with what PyTorch and torchvision offer for it: a
Dataset of PIL images with RandomCrop, ToTensor and Normalize, a DataLoader without workers, a
deep copy of the model for each client, torch.optim.SGD as it comes, loss.item() after every batch,
the model in the default memory format, and PyTorch's default threads, which are one for each core.
The ResNet-10 has the usual strided 1x1 convolution in its shortcuts. Nothing is slowed down.

The work is that of `fedpw` with the same words: the same images with each client, batches,
epochs, rounds, initial weights and test images. The server step is this package's own. Each round
is printed as a line of JSON: its number, seconds, and the accuracy on each domain.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fedpw_flwr.algorithm import ClientResult, FedPWSettings, WeightingState, server_step
from fedpw_flwr.engines import engine_for
from fedpw_flwr.lab.config.configuration import compose_configuration
from fedpw_flwr.lab.data.examples import Examples, ImageSet
from fedpw_flwr.lab.experiment import Experiment, build_experiment
from fedpw_flwr.lab.models.resnet import BasicBlock, ResNet10

TEST_BATCH = 256


@dataclass(frozen=True)
class PlainRound:
    """A round of the plain loop: training, aggregation and evaluation."""

    round: int
    seconds: float
    accuracy: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="as for fedpw, after --")
    arguments = parser.parse_args()
    experiment = build_experiment(compose_configuration("config", shlex.join(arguments.overrides)))
    for done in plain_rounds(experiment, arguments.rounds):
        print(json.dumps(asdict(done)), flush=True)


def plain_rounds(experiment: Experiment, rounds: int) -> Iterator[PlainRound]:
    """Train `rounds` rounds of the experiment, from its seed."""
    device = experiment.device
    settings = experiment.client
    strategy, data = experiment.configuration.strategy, experiment.data
    chosen = ("avg_drop_rate", "beta", "clip_weights", "adapt_weights", "adjust_parameters")
    fedpw = FedPWSettings(**{name: strategy[name] for name in chosen})
    as_it_is = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    crop = transforms.RandomCrop(data.shape[1:], padding=settings.crop_padding or None)
    to_train, to_test = transforms.Compose([crop, *as_it_is]), transforms.Compose(as_it_is)
    clients = [
        DataLoader(Pictures(share.train, to_train), settings.batch_size, shuffle=True)
        for share in experiment.shares
    ]
    tests = {
        domain.name: DataLoader(Pictures(domain.test, to_test), TEST_BATCH)
        for domain in data.domains
    }
    model = plain_network(experiment).to(device)
    state = WeightingState()
    torch.manual_seed(experiment.seed)
    for number in range(1, rounds + 1):
        started = time.monotonic()
        results = []
        for client, batches in enumerate(clients):
            local = copy.deepcopy(model)
            loss = train_locally(local, batches, experiment)
            examples = len(experiment.shares[client].train)
            results.append(ClientResult(client, local.state_dict(), loss, examples))
        step = server_step(model.state_dict(), results, state, fedpw, engine=engine_for(device))
        model.load_state_dict(step.model)
        state = step.state
        accuracy = {name: accuracy_on(model, batches, device) for name, batches in tests.items()}
        yield PlainRound(number, time.monotonic() - started, accuracy)


def train_locally(
    model: nn.Module, batches: DataLoader[tuple[Tensor, int]], experiment: Experiment
) -> float:
    """Train in place, and return the mean loss over all batches."""
    settings = experiment.client
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    model.train()
    losses = []
    for _ in range(settings.epochs):
        for images, labels in batches:
            images, labels = images.to(experiment.device), labels.to(experiment.device)
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def accuracy_on(
    model: nn.Module, batches: DataLoader[tuple[Tensor, int]], device: torch.device
) -> float:
    model.eval()
    correct = seen = 0
    for images, labels in batches:
        logits = model(images.to(device))
        correct += (logits.argmax(dim=1) == labels.to(device)).sum().item()
        seen += len(labels)
    return correct / seen


class Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures as torchvision's own data sets give them: PIL, then the transform."""

    def __init__(self, images: Examples, transform: transforms.Compose) -> None:
        assert isinstance(images, ImageSet)
        arrays = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.images = arrays[..., 0] if arrays.shape[-1] == 1 else arrays
        self.labels = images.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class PlainBlock(BasicBlock):
    """The block with a strided 1x1 convolution in its shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride)
        if isinstance(self.shortcut, nn.Sequential):
            self.shortcut[0] = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = relu(self.bn1(self.conv1(x)), inplace=True)
        return relu(self.bn2(self.conv2(inner)) + self.shortcut(x), inplace=True)


class PlainResNet10(ResNet10):
    """The same network and names of weights, in whatever memory format it is given."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 64) -> None:
        super().__init__(num_classes, in_channels, width)
        self.stages = nn.Sequential(
            *(
                PlainBlock(block.conv1.in_channels, block.conv1.out_channels, block.stride)
                for block in self.stages
                if isinstance(block, BasicBlock)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.stages(relu(self.bn(self.stem(x)), inplace=True))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


def plain_network(experiment: Experiment) -> nn.Module:
    """Return the experiment's network with its initial weights, the ResNet-10 in plain form."""
    model = experiment.new_model()
    if not isinstance(model, ResNet10):
        return model
    plain = PlainResNet10(
        experiment.data.num_classes, experiment.data.in_channels, model.stem.out_channels
    )
    plain.load_state_dict(model.state_dict())
    return plain


if __name__ == "__main__":
    main()
