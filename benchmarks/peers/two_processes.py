"""Two processes, each with half of the clients, and PyTorch's all-reduce: what two cores can do.

pip install torch numpy

No framework stands between the clients and the cores: each process keeps its clients' images,
sums their networks in place, tests half of the images, and the only messages are the sums.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from workload import CLIENTS, accuracy, arguments, network, read, tell, train

PROCESSES = 2


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        context = mp.get_context("spawn")
        others = [
            context.Process(target=play, args=(rank, options, meeting))
            for rank in range(1, PROCESSES)
        ]
        for process in others:
            process.start()
        play(0, options, meeting)
        for process in others:
            process.join()


def play(rank: int, options: argparse.Namespace, meeting: Path) -> None:
    """Play all rounds with every second client, and meet the other process after each."""
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=PROCESSES)
    data = read(options.data)
    clients = data.clients[rank::PROCESSES]
    images, labels = (tensor[rank::PROCESSES] for tensor in data.test)
    model = network()
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    for number in range(1, options.rounds + 1):
        total = torch.zeros_like(weights)
        for one in clients:
            local = copy.deepcopy(model)
            train(local, one)
            total += torch.nn.utils.parameters_to_vector(local.parameters()).detach()
        dist.all_reduce(total)
        torch.nn.utils.vector_to_parameters(total / CLIENTS, model.parameters())
        correct = torch.tensor(accuracy(model, (images, labels)) * len(labels))
        dist.all_reduce(correct)
        if rank == 0:
            tell(number, correct.item() / len(data.test[1]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
