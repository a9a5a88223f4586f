"""deployment: A Flower / PyTorch app."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

DATA_FILE = "data.npz"


class Net(nn.Module):
    """A small CNN for images of 8×8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(32 * 2 * 2, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 1, 8, 8) to logits (B, 10)."""
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def get_weights(net: nn.Module) -> list[NDArray[np.float32]]:
    """Give the model's parameters as NumPy arrays."""
    return [value.cpu().numpy() for value in net.state_dict().values()]


def set_weights(net: nn.Module, parameters: list[NDArray[np.float32]]) -> None:
    """Load parameters into the model."""
    tensors = (torch.tensor(array) for array in parameters)
    net.load_state_dict(dict(zip(net.state_dict(), tensors, strict=True)))


def load_data(folder: Path, part: str) -> TensorDataset:
    """Load a site's own images: those to "train" on, or those to "test" with."""
    # Never pickled objects: a data file must not be able to run code.
    with np.load(folder / DATA_FILE, allow_pickle=False) as archive:
        images, labels = (torch.from_numpy(archive[f"{kind}_{part}"]) for kind in "xy")
    return TensorDataset(images, labels)


def train(
    net: nn.Module,
    trainset: TensorDataset,
    epochs: int,
    batch_size: int,
    lr: float,
    device: torch.device,
) -> float:
    """Train the model; return the mean loss over all batches."""
    net.to(device).train()
    trainloader = DataLoader(trainset, batch_size, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    running_loss = 0.0
    for _ in range(epochs):
        for images, labels in trainloader:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


@torch.no_grad()
def test(net: nn.Module, testset: TensorDataset, device: torch.device) -> tuple[float, float]:
    """Test the model; return the mean loss and the accuracy."""
    net.to(device).eval()
    loss, correct, count = 0.0, 0, 0
    for images, labels in DataLoader(testset, batch_size=256):
        logits, labels = net(images.to(device)), labels.to(device)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    return loss / count, correct / count
