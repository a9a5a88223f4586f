"""The test of a global model, divided among workers, is the test in one process."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from ray.exceptions import RayError
from support.app_federation import OVERRIDES, experiment

from fedpw_flwr.lab.app import testing
from fedpw_flwr.lab.app.testing import GlobalModelTest

KEPT = f"{OVERRIDES} partition.test_share=0.25"


@pytest.mark.parametrize("sizes", [[10, 256, 257, 3000], [1], [256] * 5])
@pytest.mark.parametrize("number", [1, 2, 3, 100])
def test_every_batch_has_its_place_in_one_share(sizes: list[int], number: int) -> None:
    shares = testing._divided(sizes, number)
    assert 1 <= len(shares) <= number
    done = [(i, b) for share in shares for i, part in share for b in range(part.start, part.stop)]
    assert done == [(i, b) for i, size in enumerate(sizes) for b in range(-(-size // 256))]
    lengths = [sum(part.stop - part.start for _, part in share) for share in shares]
    assert max(lengths) <= -(-len(done) // number)


class Here:
    """Workers that do everything at once in this process, but those that die."""

    def __init__(self, number: int, dead: int = -1) -> None:
        self.number, self.dead, self.calls = number, dead, 0

    def wait(self) -> int:
        return self.number

    def put(self, value: Any) -> Any:
        return value

    def call(self, function: Any, *arguments: Any, urgent: bool) -> Future[Any]:
        future: Future[Any] = Future()
        if self.calls == self.dead:
            future.set_exception(RayError("died"))
        else:
            future.set_result(function(*arguments))
        self.calls += 1
        return future


class Grid:
    """What the test knows of a grid."""

    given: tuple[Any, ...] = ()

    def __init__(self, workers: Here) -> None:
        self.workers = workers


@pytest.mark.parametrize("dead", [-1, 1])
def test_shares_of_workers_make_the_figures_of_one_process(dead: int) -> None:
    built = experiment(KEPT)
    arrays = ArrayRecord(built.new_model().state_dict())
    alone = GlobalModelTest(built)(arrays)
    assert alone.client_accuracy is not None
    workers = Here(3, dead)
    grid: Any = Grid(workers)
    assert GlobalModelTest(built, grid, ("config", KEPT))(arrays) == alone
    assert workers.calls == 3


def test_a_test_in_this_process_leaves_its_threads_as_they_were() -> None:
    built, threads = experiment(KEPT), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        GlobalModelTest(built)(ArrayRecord(built.new_model().state_dict()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
