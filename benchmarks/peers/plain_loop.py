"""One process that trains one client after another, without any framework.

pip install torch numpy
"""

from __future__ import annotations

import copy

import torch
from workload import accuracy, arguments, network, read, tell, train


def main() -> None:
    options = arguments()
    data = read(options.data)
    model = network()
    for number in range(1, options.rounds + 1):
        trained = []
        for images in data.clients:
            local = copy.deepcopy(model)
            train(local, images)
            trained.append(local.state_dict())
        # All clients hold as many images: FedAvg's weights are equal.
        model.load_state_dict(
            {name: torch.stack([one[name] for one in trained]).mean(dim=0) for name in trained[0]}
        )
        tell(number, accuracy(model, data.test))


if __name__ == "__main__":
    main()
