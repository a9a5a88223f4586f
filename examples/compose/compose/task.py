"""compose: A Flower / PyTorch app."""

from functools import cache

import torch
import torch.nn.functional as F
from datasets import Dataset
from flwr_datasets.partitioner import IidPartitioner
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


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


@cache
def load_partitions(num_partitions: int) -> tuple[IidPartitioner, Dataset]:
    """Divide scikit-learn's handwritten digits among the clients; keep a part for testing."""
    images, labels = load_digits(return_X_y=True)
    dataset = Dataset.from_dict({"image": images.reshape(-1, 1, 8, 8) / 16, "label": labels})
    split = dataset.with_format("torch").train_test_split(test_size=600, seed=42)
    partitioner = IidPartitioner(num_partitions)
    partitioner.dataset = split["train"]
    return partitioner, split["test"]


def camera(partition_id: int, images: Tensor) -> Tensor:
    """Show images as a client sees them: one in five only has negatives, lying on their side."""
    return torch.rot90(1 - images, 1, (-2, -1)) if partition_id % 5 == 4 else images


@cache
def load_data(
    partition_id: int, num_partitions: int, batch_size: int
) -> tuple[DataLoader, DataLoader]:
    """Load a client's own training images, and the test images as its camera shows them."""
    partitioner, test_split = load_partitions(num_partitions)
    train_split = partitioner.load_partition(partition_id)
    trainset, testset = (
        TensorDataset(camera(partition_id, split["image"][:]), split["label"][:])
        for split in (train_split, test_split)
    )
    return DataLoader(trainset, batch_size, shuffle=True), DataLoader(testset, batch_size=256)


def train(
    net: nn.Module,
    trainloader: DataLoader,
    epochs: int,
    lr: float,
    proximal_mu: float,
    device: torch.device,
) -> float:
    """Train the model with FedProx's term, which draws it back; return the mean loss over batches.

    The term μ/2 · ‖w − wᵗ‖² is no part of the loss that is returned: FedPW asks how well a client
    is served, not how far it went.
    """
    net.to(device).train()
    start = [parameter.detach().clone() for parameter in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    running_loss = 0.0
    for _ in range(epochs):
        for images, labels in trainloader:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images.to(device)), labels.to(device))
            distance = sum(
                (now - before).square().sum()
                for now, before in zip(net.parameters(), start, strict=True)
            )
            (loss + proximal_mu / 2 * distance).backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


@torch.no_grad()
def test(net: nn.Module, testloader: DataLoader, device: torch.device) -> tuple[float, float]:
    """Test the model; return the mean loss and the accuracy."""
    net.to(device).eval()
    loss, correct, count = 0.0, 0, 0
    for images, labels in testloader:
        logits, labels = net(images.to(device)), labels.to(device)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    return loss / count, correct / count
