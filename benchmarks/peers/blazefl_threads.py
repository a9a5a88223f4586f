"""BlazeFL: clients in two threads of one process.

pip install "blazefl[reproducibility,contrib]"    # Python 3.14, its free-threaded build
"""

from __future__ import annotations

from enum import StrEnum

import workload
from blazefl.contrib.fedavg import (
    FedAvgBaseServerHandler,
    FedAvgPartitionType,
    FedAvgThreadPoolClientTrainer,
)
from torch import Generator, nn
from torch.utils.data import DataLoader, TensorDataset

THREADS = 2
SEED = 0


class Name(StrEnum):
    """Names of networks: there is one."""

    CNN = "cnn"


class Networks:
    """Makes networks by name, as BlazeFL asks for them."""

    def select_model(self, model_name: Name) -> nn.Module:
        return workload.network()


class Digits:
    """The clients' images; the server tests on what it is given elsewhere."""

    def __init__(self, data: workload.Data) -> None:
        self.sets = [TensorDataset(*images) for images in data.clients]

    def get_dataset(self, type_: FedAvgPartitionType, cid: int) -> TensorDataset:
        return self.sets[cid]

    def get_dataloader(
        self, type_: FedAvgPartitionType, cid: int, batch_size: int, generator: Generator
    ) -> DataLoader:
        return DataLoader(self.sets[cid], batch_size, shuffle=True, generator=generator)


def main() -> None:
    options = workload.arguments()
    data = workload.read(options.data)
    digits = Digits(data)
    common = {
        "model_selector": Networks(),
        "model_name": Name.CNN,
        "dataset": digits,
        "num_clients": workload.CLIENTS,
        "device": "cpu",
        "batch_size": workload.BATCH,
        "seed": SEED,
    }
    handler = FedAvgBaseServerHandler(global_round=options.rounds, sample_ratio=1.0, **common)
    trainer = FedAvgThreadPoolClientTrainer(
        epochs=workload.EPOCHS, lr=workload.LEARNING_RATE, num_parallels=THREADS, **common
    )
    while not handler.is_stopped():
        trainer.local_process(handler.downlink_package(), handler.sample_clients())
        for package in trainer.uplink_package():
            handler.load(package)
        workload.tell(handler.round, workload.accuracy(handler.model, data.test))


if __name__ == "__main__":
    main()
