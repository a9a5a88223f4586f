"""What the strategies that FedPW is compared with have in common: everything but their weights.

A comparison is only one of methods if the rest is the same, so baselines are played by the same
`Driver` as FedPW.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Unpack, get_args

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult
from fedpw_flwr.baselines.averaging import RoundWeights, moved_tensors
from fedpw_flwr.rounds.driver import Driver
from fedpw_flwr.rounds.method import Method, Step
from fedpw_flwr.rounds.replies import TrainReply, all_finite
from fedpw_flwr.strategy.options import BaselineOptions
from fedpw_flwr.strategy.sampling import NodeSampling
from fedpw_flwr.strategy.screened_fedavg import ScreenedFedAvg
from fedpw_flwr.wire.records import INITIAL_LOSS, REPORT_INITIAL_LOSS

logger = logging.getLogger("flwr")

Rescale = Literal["none", "mean"]
"""How long a step is: as in the paper of the method, or as long as the clients' own on average."""


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

    hyperparameters: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that are the method's settings."""

    memory: Any = None
    """What `weigh` returned last; None where the method has no memory."""

    rounds_done = 0

    def __init__(self, **options: Unpack[BaselineOptions]) -> None:
        train_loss_key = options.pop("train_loss_key", "train_loss")
        if not isinstance(train_loss_key, str) or not train_loss_key:
            raise ValueError(f"train_loss_key must name a metric, got {train_loss_key!r}")
        super().__init__(Driver(self), NodeSampling(), **options)
        self.train_loss_key = train_loss_key

    @property
    def settings(self) -> dict[str, Any]:
        """The method's hyper-parameters, by name, as JSON can hold them."""
        return {name: getattr(self, name) for name in self.hyperparameters}

    @abstractmethod
    def weigh(
        self, global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
    ) -> tuple[RoundWeights, Any]:
        """Return what each client counts in this round, and the memory after it. Changes nothing.

        Parameters
        ----------
        global_model : Mapping[str, Tensor]
            w.
        results : Sequence[ClientResult]
            The usable results, at least one, in the order of client id.
        """

    def step(self, model: Mapping[str, Tensor], replies: Sequence[TrainReply]) -> Step:
        """Move the model by the weighted updates."""
        results = [reply.result for reply in replies]
        with torch.no_grad():
            weights, memory = self.weigh(model, results)
            moved = dict(moved_tensors(model, results, weights))
        clients = [reply.client for reply in replies]
        metrics = MetricRecord({"client-id": clients, "client-weight": list(weights.step)})
        losses = [_reported(reply.content, self.train_loss_key) for reply in replies]
        known = [loss for loss in losses if loss is not None]
        if len(known) == len(losses):
            metrics["client-loss"] = known
        return Step(moved, memory, metrics)

    def remember(self, memory: Any) -> None:
        """Take the memory of the next round, and count the round."""
        self.memory = memory
        self.rounds_done += 1

    def saved_memory(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what the method carries from round to round: JSON, and tensors by name."""
        return {"rounds": self.rounds_done}, {}

    def restore_memory(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Set it to what `saved_memory` returned, among other keys."""
        self.rounds_done = int(state["rounds"])

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
    return float(value) if isinstance(value, int | float) and all_finite(value) else None


class LossWeightedStrategy(ScreenedStrategy):
    """A strategy that cannot do without losses, and asks clients for F_k(w) if it is to take that.

    AFL, TERM and q-FFL are written in F_k(w), the loss of the model that *arrives* at a client over
    all of its training data. With ``train_loss_key="initial_loss"`` the configuration of every
    training message holds ``report-initial-loss``, to which the clients of this package's app
    answer, at the price of a pass over their data. With any other key nothing is asked, and the
    metric of that name is taken as the loss. The default is what any client can report, the mean
    over its local steps, which is lower the better it trains, and most so where it overfits.
    """

    needs_loss = True

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes and send them the model, with the question for its loss."""
        if self.train_loss_key == INITIAL_LOSS:
            config = ConfigRecord({**config, REPORT_INITIAL_LOSS: True})
        return super().configure_train(server_round, arrays, config, grid)


def checked_rescale(rescale: Rescale) -> Rescale:
    """Return how long steps are to be; ValueError if it is not one of the choices."""
    if rescale not in get_args(Rescale):
        raise ValueError(f"rescale={rescale!r}: choose 'none' or 'mean'")
    return rescale


def number_in(
    name: str,
    value: object,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> float:
    """Return a setting that is a number from `least` to `most`; `above` and `below`: not these.

    TypeError if it is not a number, ValueError if it is not finite, or outside.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    at_an_end = (above and number == least) or (below and number == most)
    if at_an_end or not (math.isfinite(number) and least <= number <= most):
        opening = "(" if above or least == -math.inf else "["
        closing = ")" if below or most == math.inf else "]"
        raise ValueError(f"{name}={value} is outside {opening}{least:g}, {most:g}{closing}")
    return number
