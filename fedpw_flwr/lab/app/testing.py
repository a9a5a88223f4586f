"""How well a global model does: on every domain's test images, and on those that clients keep.

Where a run has workers, idle while the server tests, each classifies a part of the batches. The
parts are put together in one order, so the figures are those of one process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from threading import Lock

import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from torch import nn

from fedpw_flwr.lab.app.client_app import worker_model
from fedpw_flwr.lab.experiment import Experiment, experiment_of
from fedpw_flwr.lab.training.evaluation import BATCH_SIZE, Evaluation, Scores, scores

_threads = Lock()

Part = tuple[int, slice]
"""Index in `Experiment.test_sets`, and which of its batches."""


@dataclass(frozen=True)
class Tested:
    """A model's result in every domain, and on each client's own data where clients keep some.

    `pooled_auc`, of two classes, is that of the test data of all domains together.
    """

    domains: dict[str, Evaluation]
    client_accuracy: list[float] | None
    pooled_auc: float | None = None


class GlobalModelTest:
    """Tests global models of an experiment, with the workers of a run where there are any.

    `run` is by what the workers know it: the name of a configuration, and overrides.
    """

    def __init__(
        self, experiment: Experiment, grid: Grid | None = None, run: tuple[str, str] = ("", "")
    ) -> None:
        self.experiment, self.model = experiment, experiment.new_model()
        """The experiment, and its model in this process, to load arrays into."""
        self._workers = getattr(grid, "workers", None)
        self._given = getattr(grid, "given", [])
        self._run = run

    def __call__(self, arrays: ArrayRecord) -> Tested:
        """Test a model."""
        experiment = self.experiment
        names = experiment.data.names
        found: list[list[Scores]] = [[] for _ in experiment.test_sets]
        for share, its_scores in self._scored(arrays):
            for (index, _), part in zip(share, its_scores, strict=True):
                found[index].append(part)
        whole = [Scores.joined(parts) for parts in found]
        own = None
        if len(whole) > len(names):
            own = whole[-1].accuracies([len(s.test) for s in experiment.shares if s.test])
        domains = zip(names, whole, strict=False)
        pooled = None
        if experiment.data.num_classes == 2:
            pooled = Scores.joined(whole[: len(names)]).evaluation().auc
        return Tested({name: one.evaluation() for name, one in domains}, own, pooled)

    def _scored(self, arrays: ArrayRecord) -> Iterator[tuple[list[Part], list[Scores]]]:
        """Yield all parts with their scores, those of one set in the order of its batches."""
        sizes = [len(one) for one in self.experiment.test_sets]
        runtime, device = self.experiment.runtime, self.experiment.device
        # Where only the server has a GPU, it is the faster one alone.
        if self._workers is None or (device.type != "cpu" and runtime.gpus_per_client == 0):
            (share,) = _divided(sizes, 1)
            yield share, self._scored_here(arrays, share)
            return
        from ray.exceptions import RayError

        shares = _divided(sizes, self._workers.wait())
        model = self._workers.put(arrays)
        calls = [
            self._workers.call(_score_there, self._run, self._given, model, share, urgent=True)
            for share in shares
        ]
        for share, call in zip(shares, calls, strict=True):
            try:
                its_scores = call.result()
            except RayError:
                # The worker died: perhaps of a client's work.
                its_scores = self._scored_here(arrays, share)
            yield share, its_scores

    def _scored_here(self, arrays: ArrayRecord, share: Sequence[Part]) -> list[Scores]:
        # As a worker does: with other threads, a last bit may be another.
        with _threads:
            threads = torch.get_num_threads()
            torch.set_num_threads(self.experiment.runtime.cpus_per_client)
            try:
                return _score(self.experiment, self.model, arrays, share)
            finally:
                torch.set_num_threads(threads)


def _divided(sizes: Sequence[int], number: int) -> list[list[Part]]:
    """Divide the batches of sets of these sizes into a number of shares, nearly equal."""
    batches = [(index, b) for index, n in enumerate(sizes) for b in range(-(-n // BATCH_SIZE))]
    each = math.ceil(len(batches) / number)
    shares = []
    for start in range(0, len(batches), each):
        share: list[Part] = []
        for index, those in groupby(batches[start : start + each], key=itemgetter(0)):
            numbers = [batch for _, batch in those]
            share.append((index, slice(numbers[0], numbers[-1] + 1)))
        shares.append(share)
    return shares


def _score_there(
    run: tuple[str, str], given: list[object], arrays: ArrayRecord, parts: Sequence[Part]
) -> list[Scores]:
    """Score parts in a worker, with the model that it trains, too."""
    from fedpw_flwr.lab.simulation.client_process import take

    take(given)
    return _score(experiment_of(*run), worker_model(*run), arrays, parts)


def _score(
    experiment: Experiment, model: nn.Module, arrays: ArrayRecord, parts: Sequence[Part]
) -> list[Scores]:
    """Classify parts of the test images with a model that `arrays` are loaded into."""
    model.load_state_dict(arrays.to_torch_state_dict())
    return [
        scores(model, experiment.test_sets[index], experiment.normalisation, batches=batches)
        for index, batches in parts
    ]
