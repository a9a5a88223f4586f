"""FedLab: its standalone pipeline with the serial trainer, in one process.

pip install fedlab torch torchvision
"""

from __future__ import annotations

import workload
from fedlab.contrib.algorithm.fedavg import FedAvgSerialClientTrainer, FedAvgServerHandler
from fedlab.contrib.dataset.basic_dataset import FedDataset
from fedlab.core.standalone import StandalonePipeline
from torch.utils.data import DataLoader, TensorDataset


class Digits(FedDataset):
    """The clients' images, as FedLab asks for them."""

    def __init__(self, data: workload.Data) -> None:
        super().__init__()
        self.num = workload.CLIENTS
        self.sets = [TensorDataset(*images) for images in data.clients]

    def get_dataset(self, id: int, type: str = "train") -> TensorDataset:
        return self.sets[id]

    def get_dataloader(self, id: int, batch_size: int, type: str = "train") -> DataLoader:
        return DataLoader(self.sets[id], batch_size, shuffle=True)


class Pipeline(StandalonePipeline):
    """The pipeline, which asks its user to say how the global network is tested."""

    def __init__(
        self, handler: FedAvgServerHandler, trainer: FedAvgSerialClientTrainer, data: workload.Data
    ) -> None:
        super().__init__(handler, trainer)
        self.test = data.test

    def evaluate(self) -> None:
        workload.tell(self.handler.round, workload.accuracy(self.handler.model, self.test))


def main() -> None:
    options = workload.arguments()
    data = workload.read(options.data)
    handler = FedAvgServerHandler(workload.network(), global_round=options.rounds, sample_ratio=1.0)
    trainer = FedAvgSerialClientTrainer(workload.network(), workload.CLIENTS)
    trainer.setup_dataset(Digits(data))
    trainer.setup_optim(workload.EPOCHS, workload.BATCH, workload.LEARNING_RATE)
    Pipeline(handler, trainer, data).main()


if __name__ == "__main__":
    main()
