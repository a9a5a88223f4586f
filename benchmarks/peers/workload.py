"""What every peer does: the same images, network, training and test, in plain PyTorch.

Ten clients train a small network on 400 digits each, for two epochs of SGD a round; the average of
their networks is tested after each round. `train` is the loop of those peers that leave training
to their user; the others have a loop of their own, which takes the same steps. Each process
computes with one thread, which peers.py asks for with OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CLIENTS, IMAGES = 10, 400
EPOCHS, BATCH, LEARNING_RATE = 2, 16, 0.1
TEST_BATCH = 256
MEAN, STD = 0.449, 0.226
"""What fedpw normalises grey images with: the mean of ImageNet's three channels."""

Images = tuple[Tensor, Tensor]
"""Normalised images (N, 1, 28, 28) and their classes (N,)."""


@dataclass(frozen=True)
class Data:
    """Images of each client, and those on which the global network is tested."""

    clients: list[Images]
    test: Images


def arguments() -> argparse.Namespace:
    """Read the command line that all peers have."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="archive that peers.py cut")
    parser.add_argument("--rounds", type=int, default=10)
    return parser.parse_args()


def read(archive: Path) -> Data:
    """Read the images; each client holds the next 400 of those for training."""
    with np.load(archive) as arrays:
        train, test = (
            (
                (torch.from_numpy(arrays[f"x_{split}"]).float().unsqueeze(1) / 255 - MEAN) / STD,
                torch.from_numpy(arrays[f"y_{split}"]),
            )
            for split in ("train", "test")
        )
    images, labels = (tensor.split(IMAGES) for tensor in train)
    return Data(list(zip(images, labels, strict=True))[:CLIENTS], test)


def network() -> nn.Sequential:
    """Return the network of fedpw's `model=cnn` with the same first weights in each process."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(1024, 128),
        nn.ReLU(inplace=True),
        nn.Linear(128, 10),
    )


def train(model: nn.Module, data: Images) -> None:
    """Train in place as a client does in one round."""
    images, labels = data
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, fused=True)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


@torch.inference_mode()
def accuracy(model: nn.Module, data: Images) -> float:
    """Return the part of the images, 0 to 1, that the network classifies rightly."""
    model.eval()
    batches = zip(*(tensor.split(TEST_BATCH) for tensor in data), strict=True)
    correct = sum(int((model(x).argmax(dim=1) == y).sum()) for x, y in batches)
    return correct / len(data[1])


def tell(number: int, accuracy: float) -> None:
    """Print that a round is done, in the form that peers.py waits for."""
    print(f"round {number} accuracy {accuracy:.4f}", flush=True)
