"""legacy-numpyclient: A Flower / PyTorch app."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """Two hidden layers for images of 8×8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 64)
        self.fc2 = nn.Linear(64, 32)
        self.fc3 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 64) to logits (B, 10)."""
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def get_weights(net: nn.Module) -> list[NDArray[np.float32]]:
    """Give the model's parameters as NumPy arrays."""
    return [value.cpu().numpy() for value in net.state_dict().values()]


def set_weights(net: nn.Module, parameters: list[NDArray[np.float32]]) -> None:
    """Load parameters into the model."""
    tensors = (torch.tensor(array) for array in parameters)
    net.load_state_dict(dict(zip(net.state_dict(), tensors, strict=True)))


@cache
def load_partitions(num_partitions: int) -> DirichletPartitioner:
    """Divide scikit-learn's handwritten digits: each client has few examples of some classes."""
    pixels, labels = load_digits(return_X_y=True)
    partitioner = DirichletPartitioner(
        num_partitions, partition_by="label", alpha=0.3, min_partition_size=40, seed=7
    )
    partitioner.dataset = Dataset.from_dict({"pixels": pixels / 16, "label": labels})
    return partitioner


@cache
def load_data(
    partition_id: int, num_partitions: int, batch_size: int
) -> tuple[DataLoader, DataLoader]:
    """Load a client's own images: 70 % to train, 30 % to test."""
    partition = load_partitions(num_partitions).load_partition(partition_id).with_format("torch")
    split = partition.train_test_split(test_size=0.3, seed=42)
    trainset, testset = (
        TensorDataset(part["pixels"][:].float(), part["label"][:])
        for part in (split["train"], split["test"])
    )
    return DataLoader(trainset, batch_size, shuffle=True), DataLoader(testset, batch_size=256)


def train(
    net: nn.Module, trainloader: DataLoader, epochs: int, lr: float, device: torch.device
) -> float:
    """Train the model; return the mean loss over all batches."""
    net.to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    running_loss = 0.0
    for _ in range(epochs):
        for pixels, labels in trainloader:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(pixels.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


@torch.no_grad()
def test(net: nn.Module, testloader: DataLoader, device: torch.device) -> tuple[float, float]:
    """Test the model; return the mean loss and the accuracy."""
    net.to(device).eval()
    loss, correct, count = 0.0, 0, 0
    for pixels, labels in testloader:
        logits, labels = net(pixels.to(device)), labels.to(device)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    return loss / count, correct / count
