"""What the strategies that FedPW is compared with have in common: everything but their weights.

A comparison is only one of methods if the rest is the same, so baselines are played by the same
`Driver` as FedPW.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Unpack

import torch
from flwr.app import MetricRecord, RecordDict
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult
from fedpw_flwr.baselines.averaging import RoundWeights, moved_tensors
from fedpw_flwr.rounds.driver import Driver
from fedpw_flwr.rounds.method import Method, Step
from fedpw_flwr.rounds.replies import TrainReply, all_finite
from fedpw_flwr.strategy.options import BaselineOptions
from fedpw_flwr.strategy.sampling import NodeSampling
from fedpw_flwr.strategy.screened_fedavg import ScreenedFedAvg

__all__ = ["ScreenedStrategy"]

logger = logging.getLogger("flwr")


class ScreenedStrategy(ScreenedFedAvg, Method):
    """A strategy that says what each client counts in a round; the rest is done for it.

    A round's metrics hold the parallel lists ``client-id``, ``client-weight`` (c_k: what each
    update was multiplied by before they were summed) and ``client-loss`` (where all report it).

    Parameters
    ----------
    **options : BaselineOptions
        ``train_loss_key`` (default: "train_loss"), the MetricRecord key under which clients report
        their mean training loss, and the options of Flower's FedAvg.

    Raises
    ------
    ValueError
        If `train_loss_key` names nothing.
    """

    def __init__(self, **options: Unpack[BaselineOptions]) -> None:
        train_loss_key = options.pop("train_loss_key", "train_loss")
        if not isinstance(train_loss_key, str) or not train_loss_key:
            raise ValueError(f"train_loss_key must name a metric, got {train_loss_key!r}")
        super().__init__(Driver(self), NodeSampling(), **options)
        self.train_loss_key = train_loss_key
        self._rounds = 0

    @property
    def rounds_done(self) -> int:
        """Rounds that were aggregated so far."""
        return self._rounds

    @property
    def settings(self) -> dict[str, Any]:
        """The method's hyper-parameters, by name, as JSON can hold them."""
        return {}

    @abstractmethod
    def weigh(
        self, global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
    ) -> tuple[RoundWeights, Any]:
        """Return what each client counts in this round. Changes nothing.

        Parameters
        ----------
        global_model : Mapping[str, Tensor]
            w.
        results : Sequence[ClientResult]
            The usable results, at least one, in the order of client id.

        Returns
        -------
        tuple[RoundWeights, Any]
            The weights, and the method's memory after the round; None where it has none.
        """

    def step(self, model: Mapping[str, Tensor], replies: Sequence[TrainReply]) -> Step:
        """Move the model by the weighted updates."""
        results = [reply.result for reply in replies]
        with torch.no_grad():
            weights, memory = self.weigh(model, results)
            moved = dict(moved_tensors(model, results, weights))
        metrics = MetricRecord(
            {
                "client-id": [reply.client for reply in replies],
                "client-weight": list(weights.step),
            }
        )
        losses = [_reported(reply.content, self.train_loss_key) for reply in replies]
        known = [loss for loss in losses if loss is not None]
        if len(known) == len(losses):
            metrics["client-loss"] = known
        return Step(moved, memory, metrics)

    def leave_out(self, private: Collection[str]) -> None:
        """Forget nothing: every floating array of the model counts."""

    def remember(self, memory: Any) -> None:
        """Count the round; methods with a memory take it."""
        self._rounds += 1

    def saved_memory(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what the method carries from round to round: JSON, and tensors by name."""
        return {"rounds": self._rounds}, {}

    def restore_memory(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Set it to what `saved_memory` returned, among other keys."""
        self._rounds = int(state["rounds"])

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that a run must keep when it goes on from a checkpoint."""
        return {"train_loss_key": self.train_loss_key, **self.settings}

    def summary(self) -> None:
        """Log the method's settings and those of FedAvg."""
        logger.info("\t├──> %s settings:", self.title)
        for name, value in self.settings.items():
            logger.info("\t│\t├── %s (%s)", name, value)
        logger.info("\t│\t└── Training loss key: '%s'", self.train_loss_key)
        super().summary()


def _reported(content: RecordDict, key: str) -> float | None:
    """Return a number that a client reports; None where it does not, or it is not finite."""
    (metrics,) = content.metric_records.values()
    value = metrics.get(key)
    if not isinstance(value, int | float) or not all_finite(value):
        return None
    return float(value)
