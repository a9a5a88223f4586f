"""FedPW as a `Method`: its memory on the server, and what it does with the replies of a round.

Both FedPW strategies are this method behind one of Flower's APIs.
"""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, get_args

from torch import Tensor

from fedpw_flwr.algorithm import (
    AdjustmentState,
    FedPWSettings,
    SentAdjustment,
    WeightingState,
    server_step,
)
from fedpw_flwr.algorithm.adjustment import requested_rates
from fedpw_flwr.algorithm.client_step import Consensus
from fedpw_flwr.algorithm.tensors import has_names
from fedpw_flwr.device import available_device
from fedpw_flwr.engines import engine_for, why_not_compiled
from fedpw_flwr.rounds.faults import BadReply, MissingLossError
from fedpw_flwr.rounds.method import Method, Requests, Step
from fedpw_flwr.rounds.replies import TrainReply
from fedpw_flwr.strategy.evaluated_losses import EvaluatedLosses
from fedpw_flwr.strategy.fedpw_record import recorded, warnings_of
from fedpw_flwr.strategy.options import Adjustment, LossSource, MethodOptions
from fedpw_flwr.wire.adjustment import CONSENSUS_KEY, AdjustmentRequest, Upload, pack_consensus
from fedpw_flwr.wire.packing import UPLOAD_DTYPES

logger = logging.getLogger("flwr")

_PATIENCE = 3
"""Rounds that may pass before an evaluation gives a loss."""


class FedPWMethod(Method):
    """FedPW: updates masked and rescaled, clients weighted by direction and loss.

    ValueError if an option is outside its range, contradicts another, or `device` is not there;
    TypeError if it has the wrong type.
    """

    title = "FedPW"

    def __init__(self, options: MethodOptions) -> None:
        given: dict[str, Any] = dict(options)
        names = FedPWSettings.__dataclass_fields__.keys() & given.keys()
        self.settings = FedPWSettings(**{name: given[name] for name in names})
        self.train_loss_key: str = given.get("train_loss_key", "train_loss")
        self.loss_source: LossSource = given.get("loss_source", "train")
        self.evaluate_loss_key: str = given.get("evaluate_loss_key", "eval_loss")
        self.adjustment: Adjustment = given.get("adjustment", "server")
        self.upload: Upload = given.get("upload", "dense")
        self.upload_dtype = given.get("upload_dtype", "float32")
        adapts, adjusts = self.settings.adapt_weights, self.settings.adjust_parameters
        self.needs_loss = (adapts or adjusts) and self.loss_source == "train"
        self.needs_evaluation = (adapts or adjusts) and self.loss_source == "evaluate"
        self.needs_examples = not adapts
        self.asks_by_client = adjusts and self.adjustment == "client"
        self.keeps_sign = self.settings.clip_weights
        self._check_placement()
        self.device = available_device("cpu" if given.get("device") is None else given["device"])
        self._given_trainable = self.settings.trainable
        self._state = WeightingState()
        self.adjustment_state = AdjustmentState()
        self.evaluated = EvaluatedLosses()
        self._names: frozenset[str] | None = None
        self._rates: dict[int, float] = {}

    def _check_placement(self) -> None:
        for name in ("train_loss_key", "evaluate_loss_key"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name} must name a metric, got {value!r}")
        for name, choices in (
            ("loss_source", get_args(LossSource)),
            ("adjustment", get_args(Adjustment)),
            ("upload", get_args(Upload)),
            ("upload_dtype", tuple(UPLOAD_DTYPES)),
        ):
            value = getattr(self, name)
            if value not in choices:
                allowed = " or ".join(repr(choice) for choice in choices)
                raise ValueError(f"{name}={value!r}: choose {allowed}")
        if self.upload == "packed" and not self.asks_by_client:
            raise ValueError(
                'upload="packed" sends the updates that clients masked: it needs '
                'adjustment="client" and adjust_parameters=True'
            )
        if self.upload == "dense" and self.upload_dtype != "float32":
            raise ValueError(
                f"upload_dtype={self.upload_dtype!r} is the type of packed values: add "
                'upload="packed"'
            )

    @property
    def trainable(self) -> tuple[str, ...] | None:
        """Names of the trainable arrays, given or learnt from the clients."""
        return self.settings.trainable

    @property
    def rounds_done(self) -> int:
        """Rounds that were aggregated so far."""
        return self.state.rounds

    @property
    def state(self) -> WeightingState:
        """FedPW's memory of the clients. Setting it forgets what clients were asked to do."""
        return self._state

    @state.setter
    def state(self, state: WeightingState) -> None:
        self._state = state
        self.adjustment_state = AdjustmentState()

    # --- A round ----------------------------------------------------------------------------------

    def requests(self, names: Sequence[str], clients: Mapping[int, int]) -> Requests:
        """Ask each node to mask with the rate that suits its client, and to rescale with C.

        `MissingLossError` after three rounds whose evaluation never gave a loss that is needed.
        """
        if self.needs_evaluation and not self.evaluated.last and self.rounds_done >= _PATIENCE:
            raise MissingLossError(
                f"no client's evaluation gave a loss {self.evaluate_loss_key!r} in "
                f"{self.rounds_done} rounds: see the log for what was wrong with each. Let the "
                'clients evaluate, or report the loss of training, without loss_source="evaluate"'
            )
        consensus = self.adjustment_state.consensus
        of_another = consensus is not None and not consensus.members.keys() <= set(names)
        if self._names not in (None, frozenset(names)) or of_another:
            # C is that of another model's arrays.
            consensus = None
            self.adjustment_state = replace(self.adjustment_state, consensus=None)
        self._names = frozenset(names)
        if not self.asks_by_client:
            return Requests()
        # In the order of client id: the last bit of a mean depends on the order of its terms.
        nodes = sorted(clients, key=clients.__getitem__)
        rates = [0.0] * len(nodes)
        if self.state.rounds > 0:
            losses = self.adjustment_state.relative_losses
            rates = requested_rates(
                [
                    self.evaluated.known(clients[node], node)
                    if self.needs_evaluation
                    else losses.get(clients[node])
                    for node in nodes
                ],
                self.settings.avg_drop_rate,
                self.settings.max_loss_ratio,
            )
        self._rates = dict(zip(nodes, rates, strict=True))
        agreed = {} if consensus is None else consensus.factors
        factors = {index: agreed[name] for index, name in enumerate(names) if name in agreed}
        shared: dict[str, bytes] = {}
        if consensus is not None and factors:
            members = [consensus.members[names[index]] for index in factors]
            shared = {CONSENSUS_KEY: pack_consensus(members)}
        by_node = {
            node: AdjustmentRequest(
                rate=rate,
                consensus_round=None if consensus is None else consensus.round,
                factors=factors,
                upload=self.upload,
                upload_dtype=self.upload_dtype,
                keep_sign=self.keeps_sign,
            )
            for node, rate in self._rates.items()
        }
        return Requests(by_node, shared)

    def screen(
        self, replies: Sequence[TrainReply], model: Mapping[str, Tensor]
    ) -> tuple[list[TrainReply], list[BadReply]]:
        """Learn from clients which arrays of a list are trainable; set aside who disagrees.

        It is settled in the first round that is aggregated, if at least half of its clients say
        so, and stays: the directions of all rounds are over the same arrays.
        """
        names = list(model)
        if has_names(names):
            return list(replies), []
        floating = {index for index, name in enumerate(names) if model[name].is_floating_point()}
        sound = [reply.trainable for reply in replies if reply.trainable]
        sound = [told for told in sound if floating.issuperset(told)]
        if sound and self.settings.trainable is None and self.state.rounds == 0:
            self._learn_trainable(sound, len(replies), names)
        agreed = self.settings.trainable
        expected = None if agreed is None else tuple(sorted(names.index(name) for name in agreed))
        good, odd = [], []
        for reply in replies:
            told = reply.trainable
            if told is None or (told in sound and expected in (None, told)):
                good.append(reply)
                continue
            others = "which are not floating arrays of the model"
            if told in sound:
                others = f"the others {list(expected or ())}"
            reason = f"it takes the arrays {list(told)} as trainable, {others}"
            odd.append(BadReply(reply.node_id, reply.client, reason))
        return good, odd

    def _learn_trainable(
        self, told: Sequence[tuple[int, ...]], replies: int, names: Sequence[str]
    ) -> None:
        common = max(sorted(set(told)), key=told.count)
        if 2 * told.count(common) >= replies:
            trainable = tuple(names[index] for index in common)
            self.settings = replace(self.settings, trainable=trainable)
            logger.info("\tThe clients take the arrays %s as trainable", list(common))
        else:
            logger.warning(
                "fewer than half of the clients take the arrays %s as trainable: every floating "
                "array counts; give FedPW(array_names=...)",
                list(common),
            )

    def leave_out(self, private: Collection[str]) -> None:
        """Forget arrays that clients keep to themselves; ValueError if none is left to train."""
        self._names = (self._names or frozenset()) - frozenset(private)
        if self.settings.trainable is None:
            return
        trainable = tuple(name for name in self.settings.trainable if name not in private)
        if not trainable:
            raise ValueError(
                f"trainable names {list(self.settings.trainable)}, and no client returns any of "
                "them: nothing would be trained. Let the clients return those arrays, or give "
                "trainable=None"
            )
        self.settings = replace(self.settings, trainable=trainable)

    def step(self, model: Mapping[str, Tensor], replies: Sequence[TrainReply]) -> Step:
        """Mask, rescale, weight and aggregate."""
        sent = None
        if self.asks_by_client:
            rates = {reply.client: self._rates[reply.node_id] for reply in replies}
            sent = SentAdjustment(
                rates=rates if self.state.rounds > 0 else None,
                consensus=self.adjustment_state.consensus,
            )
        results = [reply.result for reply in replies]
        if self.needs_evaluation:
            # Before the first evaluation all are 0, which the method takes as equal.
            losses = [self.evaluated.counted(reply.client, reply.node_id) for reply in replies]
            results = [replace(one, loss=loss) for one, loss in zip(results, losses, strict=True)]
        known = not self.needs_evaluation or bool(self.evaluated.last)
        reported = {result.client: result.loss if known else None for result in results}
        step = server_step(
            model, results, self.state, self.settings, engine=engine_for(self.device), sent=sent
        )
        adjustment = self.adjustment_state
        if self.asks_by_client:
            assert step.relative_losses is not None
            relative = dict(zip(step.clients, step.relative_losses, strict=True))
            adjustment = AdjustmentState(
                relative_losses={**adjustment.relative_losses, **relative}, consensus=step.consensus
            )
        return Step(
            step.model,
            (step.state, adjustment),
            recorded(step, reported),
            warnings_of(step, reported),
        )

    def remember(self, memory: tuple[WeightingState, AdjustmentState]) -> None:
        """Take the memory of the next round."""
        self._state, self.adjustment_state = memory

    def note_evaluation(self, losses: Mapping[int, float]) -> None:
        """Take the losses by which clients count in the next round."""
        self.evaluated = self.evaluated.after(losses)

    # --- A run ------------------------------------------------------------------------------------

    def saved_memory(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return everything that is carried from round to round: JSON, and tensors by name."""
        adjustment, trainable = self.adjustment_state, self.settings.trainable
        consensus = adjustment.consensus
        state = {
            "weighting": self.state.to_dict(),
            "relative_losses": dict(adjustment.relative_losses),
            "consensus": None
            if consensus is None
            else {"round": consensus.round, "factors": dict(consensus.factors)},
            "trainable": None if trainable is None else list(trainable),
            "evaluated_losses": self.evaluated.to_dict(),
        }
        members = {} if consensus is None else consensus.members
        return state, {f"consensus/{name}": tensor for name, tensor in members.items()}

    def restore_memory(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Set everything that is carried from round to round to what `saved_memory` returned."""
        weighting = WeightingState.from_dict(state["weighting"])
        saved = state["consensus"]
        consensus = None
        if saved is not None:
            factors = {name: float(factor) for name, factor in saved["factors"].items()}
            members = {name: tensors[f"consensus/{name}"] for name in factors}
            consensus = Consensus(int(saved["round"]), members, factors)
        losses = {int(client): float(loss) for client, loss in state["relative_losses"].items()}
        trainable = None if state["trainable"] is None else tuple(state["trainable"])
        # Earlier versions saved none.
        evaluated = state.get("evaluated_losses", EvaluatedLosses().to_dict())
        self._state, self.evaluated = weighting, EvaluatedLosses.from_dict(evaluated)
        self.adjustment_state = AdjustmentState(relative_losses=losses, consensus=consensus)
        self.settings = replace(self.settings, trainable=trainable)

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that a run must keep when it goes on."""
        source = {"loss_source": self.loss_source, "evaluate_loss_key": self.evaluate_loss_key}
        return {
            **asdict(self.settings),
            **(source if self.needs_evaluation else {}),
            # Not what the clients told: that is part of the state.
            "trainable": self._given_trainable,
            "train_loss_key": self.train_loss_key,
            "adjustment": self.adjustment,
            "upload": self.upload,
            "upload_dtype": self.upload_dtype,
        }

    def log_settings(self) -> None:
        """Log the method's settings."""
        settings = self.settings
        trainable = settings.trainable
        where = f"on the {'clients' if self.asks_by_client else 'server'}"
        if self.upload == "packed":
            where += f", packed uploads of {self.upload_dtype} values"
        slow, on = why_not_compiled(), f"{self.device}"
        if self.device.type == "cpu" and slow:
            on += f"; slower than it could be for large models: {slow}"
        elif self.device.type == "cpu":
            on += ", loops of large models compiled by Numba"
        for line in (
            "├──> FedPW settings:",
            f"│\t├── Adaptive weights: {'on' if settings.adapt_weights else 'off'}"
            f" | beta ({settings.beta:g}) | clip negative ({settings.clip_weights})",
            f"│\t├── Parameter adjustment: {where if settings.adjust_parameters else 'off'}"
            f" | average drop rate ({settings.avg_drop_rate:g})",
            f"│\t├── Loss key: '{getattr(self, f'{self.loss_source}_loss_key')}'"
            f" | from: {self.loss_source}",
            "│\t├── Trainable arrays: "
            + ("known in round 1" if trainable is None else f"{len(trainable)} named"),
            f"│\t└── Server step on: {on}",
        ):
            logger.info("\t%s", line)


class WithFedPW(ABC):
    """What both FedPW strategies show of their method."""

    method: FedPWMethod
    fraction_evaluate: float

    def _check_evaluation(self) -> None:
        if self.method.needs_evaluation and self.fraction_evaluate < 1.0:
            raise ValueError(
                'loss_source="evaluate" needs an evaluation by every client: '
                f"fraction_evaluate={self.fraction_evaluate} must be 1.0"
            )

    @property
    def settings(self) -> FedPWSettings:
        """The method's hyper-parameters."""
        return self.method.settings

    @property
    def state(self) -> WeightingState:
        """The method's memory of the clients."""
        return self.method.state

    @state.setter
    def state(self, state: WeightingState) -> None:
        self.method.state = state

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that a run must keep when it goes on from a checkpoint."""
        return self.method.fingerprint()
