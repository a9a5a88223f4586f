"""Apple's pfl-research: its simulated backend, in one process as in its quickstart.

pip install "pfl[pytorch]"    # Python 3.10 to 3.12

pfl trains and averages; it always evaluates the clients before and after their first training,
which belongs to its first round. Batches keep their order, as pfl's in-memory data sets do.
"""

from __future__ import annotations

import torch
import workload
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Network(nn.Module):
    """The network with the two methods that pfl calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = workload.network()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        self.train()
        return cross_entropy(self.layers(images), labels)

    @torch.no_grad()
    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Weighted]:
        self.eval()
        correct = (self.layers(images).argmax(dim=1) == labels).sum().item()
        return {"accuracy": Weighted(correct, len(labels))}


class Test(TrainingProcessCallback):
    """Tests the global network after each round."""

    def __init__(self, images: tuple[Tensor, Tensor]) -> None:
        self.images = images

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        workload.tell(
            central_iteration + 1, workload.accuracy(model.pytorch_model.layers, self.images)
        )
        return False, Metrics()


def main() -> None:
    options = workload.arguments()
    data = workload.read(options.data)
    clients = dict(enumerate(data.clients))
    sampler = get_user_sampler("minimize_reuse", list(clients))
    federated = FederatedDataset(lambda client: Dataset(clients[client]), sampler)
    model = Network()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=options.rounds,
            evaluation_frequency=options.rounds,
            train_cohort_size=workload.CLIENTS,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(federated, federated, [WeightByDatapoints()]),
        model=PyTorchModel(
            model,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        ),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=workload.EPOCHS,
            local_learning_rate=workload.LEARNING_RATE,
            local_batch_size=workload.BATCH,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=workload.TEST_BATCH),
        callbacks=[Test(data.test)],
    )


if __name__ == "__main__":
    main()
