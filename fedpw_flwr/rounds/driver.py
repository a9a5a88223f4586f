"""FedPW's rounds on the server, whichever of Flower's two APIs carries the messages.

Here is everything FedPW keeps from round to round and everything it does with a round's answers:
the strategies only sample clients, and turn Flower's arguments into records and back.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from flwr.app import ArrayRecord

from fedpw_flwr.algorithm import (
    AdjustmentState,
    FedPWSettings,
    SentAdjustment,
    ServerStep,
    TensorKind,
    WeightingState,
    classify_tensors,
    server_step,
)
from fedpw_flwr.algorithm.adjustment import requested_rates
from fedpw_flwr.algorithm.client_step import Consensus
from fedpw_flwr.algorithm.tensors import has_names, is_nonnegative
from fedpw_flwr.device import available_device
from fedpw_flwr.engines import engine_for, why_not_compiled
from fedpw_flwr.rounds.faults import BadReply, Project
from fedpw_flwr.rounds.global_model import check_model, without_private
from fedpw_flwr.rounds.identities import Identities
from fedpw_flwr.rounds.overgrown import step_without_overgrown, too_large
from fedpw_flwr.rounds.screening import (
    Answer,
    AskedRound,
    EvaluateReply,
    TrainReply,
    screen_evaluate_replies,
    screen_train_replies,
    without_uncounted,
)
from fedpw_flwr.rounds.standstill import Standstill
from fedpw_flwr.wire.adjustment import (
    CONSENSUS_KEY,
    HIDES_UPDATES,
    NEEDS_DENSE,
    REQUEST_KEY,
    AdjustmentRequest,
    Upload,
    pack_consensus,
)
from fedpw_flwr.wire.arrays import ArrayTensors, encode_arrays, take_as_arrays
from fedpw_flwr.wire.packing import UPLOAD_DTYPES, UploadDtype

__all__ = ["Adjustment", "Aggregated", "ServerRounds"]

logger = logging.getLogger("flwr")

Adjustment = Literal["server", "client"]

_CONFIGURED_BY = {"aggregate_train": "configure_train", "aggregate_fit": "configure_fit"}


@dataclass(frozen=True)
class Aggregated:
    """What became of a round.

    Attributes
    ----------
    arrays : ArrayRecord
        The next global model; the old one where no reply could be used.
    step : ServerStep | None
        What was decided, without the model; None where no reply could be used.
    good, bad : Sequence[TrainReply], Sequence[BadReply]
        Replies that were aggregated, and those set aside.
    asked : int
        Number of clients that were asked to train.
    """

    arrays: ArrayRecord
    step: ServerStep | None = None
    good: Sequence[TrainReply] = ()
    bad: Sequence[BadReply] = ()
    asked: int = 0


class ServerRounds:
    """FedPW's state on the server, and what it does at the start and the end of a round.

    Parameters
    ----------
    settings : FedPWSettings
        The method's hyper-parameters.
    train_loss_key : str
        Metric under which clients report their mean training loss.
    device : str | torch.device | None
        Where the server step runs; None is the CPU.
    adjustment : Adjustment
        Where Parameter Adjustment runs.
    upload : Upload
        How adjusted updates travel.
    upload_dtype : UploadDtype
        Type of packed values.

    Raises
    ------
    ValueError
        If a setting is unknown, contradicts another, or `device` is not there.
    """

    def __init__(
        self,
        settings: FedPWSettings,
        *,
        train_loss_key: str,
        device: str | torch.device | None,
        adjustment: Adjustment,
        upload: Upload,
        upload_dtype: UploadDtype,
    ) -> None:
        if not isinstance(train_loss_key, str) or not train_loss_key:
            raise ValueError(f"train_loss_key must name a metric, got {train_loss_key!r}")
        _check_choice("adjustment", adjustment, get_args(Adjustment))
        _check_choice("upload", upload, get_args(Upload))
        _check_choice("upload_dtype", upload_dtype, tuple(UPLOAD_DTYPES))
        self.on_clients = adjustment == "client" and settings.adjust_parameters
        if upload == "packed" and not self.on_clients:
            raise ValueError(
                'upload="packed" sends the updates that clients masked: it needs '
                'adjustment="client" and adjust_parameters=True'
            )
        if upload == "dense" and upload_dtype != "float32":
            raise ValueError(
                f'upload_dtype={upload_dtype!r} is the type of packed values: add upload="packed"'
            )
        self.settings = settings
        self._given_trainable = settings.trainable
        self.train_loss_key = train_loss_key
        self.device = available_device("cpu" if device is None else device)
        self.adjustment = adjustment
        self.upload: Upload = upload
        self.upload_dtype = upload_dtype
        self._state = WeightingState()
        self.adjustment_state = AdjustmentState()
        self._global_arrays: ArrayRecord | None = None
        self._dtypes: dict[str, torch.dtype] = {}
        self._asked: dict[int, AdjustmentRequest | None] = {}
        self.identities = Identities()
        self.standstill = Standstill()
        self._failed: set[int] = set()
        self._restored = False

    @property
    def state(self) -> WeightingState:
        """FedPW's memory of the clients. Setting it forgets what clients were asked to do."""
        return self._state

    @state.setter
    def state(self, state: WeightingState) -> None:
        self._state = state
        self.adjustment_state = AdjustmentState()

    @property
    def asked_nodes(self) -> frozenset[int]:
        """Ids of the nodes that were asked to train in this round."""
        return frozenset(self._asked)

    @property
    def array_names(self) -> Collection[str]:
        """Names of the arrays that are part of the model; none before the first round."""
        return self._dtypes.keys()

    def saved_state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return everything that is carried from round to round: JSON, and tensors by name."""
        adjustment, trainable = self.adjustment_state, self.settings.trainable
        consensus = adjustment.consensus
        state = {
            "weighting": self.state.to_dict(),
            "relative_losses": {
                str(client): loss for client, loss in adjustment.relative_losses.items()
            },
            "consensus": None
            if consensus is None
            else {"round": consensus.round, "factors": dict(consensus.factors)},
            "trainable": None if trainable is None else list(trainable),
            "dtypes": {name: str(dtype) for name, dtype in self._dtypes.items()},
            **self.identities.to_dict(),
        }
        members = {} if consensus is None else consensus.members
        return state, {f"consensus/{name}": tensor for name, tensor in members.items()}

    def restore_state(self, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Set everything that is carried from round to round to what `saved_state` returned.

        Raises
        ------
        ValueError
            If it is not such a state.
        """
        try:
            weighting = WeightingState.from_dict(state["weighting"])
            saved = state["consensus"]
            consensus = None
            if saved is not None:
                factors = {name: float(factor) for name, factor in saved["factors"].items()}
                members = {name: tensors[f"consensus/{name}"] for name in factors}
                consensus = Consensus(int(saved["round"]), members, factors)
            adjustment = AdjustmentState(
                relative_losses={
                    int(client): float(loss) for client, loss in state["relative_losses"].items()
                },
                consensus=consensus,
            )
            trainable = state["trainable"]
            dtypes = {name: _dtype(text) for name, text in state["dtypes"].items()}
            identities = Identities.from_dict(state)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a saved state of FedPW: {error!r}") from error
        self._state = weighting
        self.adjustment_state = adjustment
        self.settings = replace(
            self.settings, trainable=None if trainable is None else tuple(trainable)
        )
        self._dtypes = dtypes
        self.identities = identities
        self._restored = True

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that a run must keep when it goes on."""
        settings = asdict(self.settings)
        # Not what the clients told: that is part of the state.
        settings["trainable"] = self._given_trainable
        return {
            **settings,
            "train_loss_key": self.train_loss_key,
            "adjustment": self.adjustment,
            "upload": self.upload,
            "upload_dtype": self.upload_dtype,
        }

    def log_settings(self) -> None:
        """Log the method's settings."""
        settings = self.settings
        trainable = settings.trainable
        place = f"on the {'clients' if self.on_clients else 'server'}"
        if self.upload == "packed":
            place += f", packed uploads of {self.upload_dtype} values"
        lines = (
            "├──> FedPW settings:",
            f"│\t├── Adaptive weights: {'on' if settings.adapt_weights else 'off'}"
            f" | beta ({settings.beta:g}) | clip negative ({settings.clip_weights})",
            f"│\t├── Parameter adjustment: {place if settings.adjust_parameters else 'off'}"
            f" | average drop rate ({settings.avg_drop_rate:g})",
            f"│\t├── Training loss key: '{self.train_loss_key}'",
            "│\t├── Trainable arrays: "
            + ("known in round 1" if trainable is None else f"{len(trainable)} named"),
            f"│\t└── Server step on: {self.device}{_loops_on(self.device)}",
        )
        for line in lines:
            logger.info("\t%s", line)

    def checked_model(self, server_round: int, arrays: ArrayRecord) -> ArrayRecord:
        """Check the model of a round, and give its arrays the dtypes of the first round.

        A server optimizer on top of the strategy computes in float64 and turns counters into
        floats; clients answer in the model's own dtypes.

        Raises
        ------
        ValueError
            If `trainable` names an array the model does not have, no array is floating, or one
            cannot be decoded or is not finite.
        TypeError
            If the model holds complex arrays, or `trainable` names one that is not floating.
        """
        model = ArrayTensors(arrays)
        dtypes = {name: model[name].dtype for name in model}
        is_first = not self._dtypes
        if self._dtypes.keys() != dtypes.keys():
            if self._dtypes:
                # C is that of another model's arrays.
                self.adjustment_state = replace(self.adjustment_state, consensus=None)
            self._dtypes = dtypes
        if self._dtypes != dtypes:
            arrays = encode_arrays(
                {name: _of_dtype(model[name], dtype) for name, dtype in self._dtypes.items()}
            )
            model = ArrayTensors(arrays)
        kinds = classify_tensors(model, self.settings.trainable)
        if is_first and self.settings.trainable is None:
            _log_kinds(model, kinds)
        check_model(arrays, server_round)
        return arrays

    def trained(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return those arrays of a model that training moves, what a server optimizer steps on."""
        kinds = classify_tensors(ArrayTensors(arrays), self.settings.trainable)
        return ArrayRecord(
            {name: arrays[name] for name, kind in kinds.items() if kind is TensorKind.TRAINABLE}
        )

    def trained_start(self) -> ArrayRecord:
        """Return those of the model that the clients of the round started from."""
        assert self._global_arrays is not None
        return self.trained(self._global_arrays)

    def after_step_on_top(self, stepped: ArrayRecord, aggregate: ArrayRecord) -> ArrayRecord:
        """Return FedPW's aggregate with what a server optimizer made of its trained arrays.

        They get the model's dtypes again. Entries that the optimizer took below 0, in an array that
        has none before and after the aggregation, stay as they were aggregated.
        """
        assert self._global_arrays is not None
        start, average = ArrayTensors(self._global_arrays), ArrayTensors(aggregate)
        moved = ArrayTensors(stepped)
        trained = {}
        for name in stepped:
            tensor = _of_dtype(moved[name], self._dtypes[name])
            guarded = self.settings.clip_weights and not is_nonnegative(tensor)
            if guarded and is_nonnegative(start[name]) and is_nonnegative(average[name]):
                tensor = torch.where(tensor < 0, average[name], tensor)
            trained[name] = tensor
        return ArrayRecord({**aggregate, **encode_arrays(trained)})

    def strangers(self, nodes: Sequence[int]) -> list[int]:
        """Return those of the nodes of which it would matter, and is not known, who they are.

        After a restart, when known clients are at new nodes: what they are asked for depends on it.
        """
        known = self.identities.by_node()
        unknown = [node for node in nodes if node not in known]
        if not self._restored or not self.on_clients or self.state.rounds == 0:
            # One that fails in every round never says who it is.
            return [node for node in unknown if node in self._failed]
        return unknown

    def introduce(self, clients: Mapping[int, int]) -> None:
        """Take note of which client says it is at a node: it is asked for what suits that client.

        What a node only says counts for no more than that, until it replies with an update.
        """
        self.identities.introduced.update(clients)

    def begin(self, arrays: ArrayRecord, nodes: Sequence[int]) -> dict[int, dict[str, bytes]]:
        """Begin a round: say what the nodes are to be asked beside training the model.

        Parameters
        ----------
        arrays : ArrayRecord
            The global model that is sent to them.
        nodes : Sequence[int]
            Ids of the sampled nodes.

        Returns
        -------
        dict[int, dict[str, bytes]]
            Entries for each node's configuration; empty where the server adjusts.
        """
        self._global_arrays = arrays
        self._asked = dict.fromkeys(nodes)
        if not self.on_clients:
            return {node: {} for node in nodes}
        rates = [0.0] * len(nodes)
        if self.state.rounds > 0:
            # In the order of identity: the last bit of a mean depends on the order of its terms.
            client_of = self.identities.by_node()
            nodes = sorted(nodes, key=lambda node: client_of.get(node, node))
            losses = self.adjustment_state.relative_losses
            rates = requested_rates(
                [losses.get(client_of.get(node, node)) for node in nodes],
                self.settings.avg_drop_rate,
                self.settings.max_loss_ratio,
            )
        consensus = self.adjustment_state.consensus
        places = {name: place for place, name in enumerate(arrays)}
        shared: dict[str, bytes] = {}
        factors: dict[int, float] = {}
        if consensus is not None and consensus.factors:
            ordered = sorted(consensus.factors, key=places.__getitem__)
            factors = {places[name]: consensus.factors[name] for name in ordered}
            shared = {CONSENSUS_KEY: pack_consensus([consensus.members[name] for name in ordered])}
        entries = {}
        for node, rate in zip(nodes, rates, strict=True):
            request = AdjustmentRequest(
                rate=rate,
                consensus_round=None if consensus is None else consensus.round,
                factors=factors,
                upload=self.upload,
                upload_dtype=self.upload_dtype,
                keep_sign=self.settings.clip_weights,
            )
            self._asked[node] = request
            entries[node] = {REQUEST_KEY: request.encode(), **shared}
        return entries

    def finish(
        self, phase: str, server_round: int, answers: Iterable[Answer], examples_key: str
    ) -> Aggregated:
        """End a round: screen the answers and aggregate those that can be used.

        Parameters
        ----------
        phase : str
            Name of the strategy's method, for the log.
        server_round : int
            Flower's round number, for the log.
        answers : Iterable[Answer]
            Everything that came back, in any order.
        examples_key : str
            Metric with the number of training examples.

        Returns
        -------
        Aggregated
            The next model, and how it came about.

        Raises
        ------
        UnusableRepliesError
            If all replies of the first round have the same fault (`MissingLossError`: none reports
            the training loss), or three rounds from the start had none that can be used.
        RuntimeError
            If no round was begun.
        """
        if self._global_arrays is None:
            raise RuntimeError(
                f"{phase} was called before {_CONFIGURED_BY[phase]}: FedPW needs the model that "
                "the clients started from"
            )
        if not self._asked:
            return Aggregated(self._global_arrays.copy())
        needs_loss = self.settings.adapt_weights or self.settings.adjust_parameters
        project = Project("FedPW", self.train_loss_key, examples_key, needs_loss)
        is_first = self.state.rounds == 0
        answers = list(answers)
        good, bad, private = screen_train_replies(
            answers,
            AskedRound(
                server_round, self._asked, ArrayTensors(self._global_arrays), project, is_first
            ),
            self.identities,
        )
        self._leave_out(private)
        global_model = ArrayTensors(self._global_arrays)
        if is_first:
            _refuse_incompatible_clients(good, bad)
        self._failed.update(reply.node_id for reply in bad if reply.fate == "failed")
        if not self.settings.adapt_weights:
            good, uncounted = without_uncounted(good, examples_key)
            bad += uncounted
        if not has_names(list(global_model)):
            good, odd = self._take_trainable(good, global_model)
            bad += odd
        step, good, overgrown = step_without_overgrown(
            good, global_model, lambda replies: self._attempt(replies, global_model)
        )
        bad += overgrown
        self.identities.log_replies(phase, server_round, len(good), bad)
        self.identities.log_silent(phase, server_round, self._asked, answers)
        if step is None:
            silent = len(self._asked.keys() - {answer.node_id for answer in answers})
            self.standstill.add(
                phase, server_round, bad, silent, from_start=is_first, project=project
            )
            return Aggregated(self._global_arrays.copy(), None, good, bad, len(self._asked))

        # Two whole models are never there at once: what is encoded is given up.
        model, step = step.model, replace(step, model={})
        _log_bounded(phase, server_round, step, {r.client: r.result.loss for r in good})
        arrays = take_as_arrays(model)
        self._state = step.state
        self.standstill = Standstill()
        self.identities.note(phase, server_round, good)
        if self.on_clients:
            assert step.relative_losses is not None
            losses = dict(zip(step.clients, step.relative_losses, strict=True))
            self.adjustment_state = AdjustmentState(
                relative_losses={**self.adjustment_state.relative_losses, **losses},
                consensus=step.consensus,
            )
        return Aggregated(arrays, step, good, bad, len(self._asked))

    def screen_evaluation(
        self,
        phase: str,
        server_round: int,
        answers: Iterable[Answer],
        asked: Collection[int] | None,
        examples_key: str,
    ) -> tuple[list[EvaluateReply], list[BadReply]]:
        """Separate a round's evaluation replies, and log what is wrong with the bad ones."""
        answers = list(answers)
        good, bad = screen_evaluate_replies(answers, asked, self.identities, examples_key)
        self.identities.log_replies(phase, server_round, len(good), bad)
        self.identities.log_silent(phase, server_round, asked or (), answers)
        return good, bad

    def _leave_out(self, private: Collection[str]) -> None:
        """Settle that arrays are the clients' own: no part of the model or of its trainable."""
        if not private:
            return
        assert self._global_arrays is not None
        self._global_arrays = without_private(self._global_arrays, private)
        self._dtypes = {name: self._dtypes[name] for name in self._global_arrays}
        if self.settings.trainable is not None:
            trainable = tuple(name for name in self.settings.trainable if name not in private)
            if not trainable:
                raise ValueError(
                    f"trainable names {list(self.settings.trainable)}, and no client returns any "
                    "of them: nothing would be trained. Let the clients return those arrays, or "
                    "give trainable=None"
                )
            self.settings = replace(self.settings, trainable=trainable)

    def _attempt(
        self, good: Sequence[TrainReply], global_model: ArrayTensors
    ) -> tuple[ServerStep, str | None]:
        """Aggregate, and name the first tensor that no next round could begin with."""
        step = server_step(
            global_model,
            [reply.result for reply in good],
            self.state,
            self.settings,
            engine=engine_for(self.device),
            sent=self._sent(good) if self.on_clients else None,
        )
        return step, next((name for name in step.model if too_large(name, step.model[name])), None)

    def _sent(self, good: Sequence[TrainReply]) -> SentAdjustment:
        rates = {}
        for reply in good:
            request = self._asked[reply.node_id]
            assert request is not None
            rates[reply.client] = request.rate
        return SentAdjustment(
            rates=rates if self.state.rounds > 0 else None,
            consensus=self.adjustment_state.consensus,
        )

    def _take_trainable(
        self, replies: Sequence[TrainReply], global_model: ArrayTensors
    ) -> tuple[list[TrainReply], list[BadReply]]:
        """Learn from the clients which arrays are trainable; set aside replies that disagree.

        It is settled in the first round that is aggregated, if at least half of its clients say
        so, and stays: the directions of all rounds are over the same arrays.
        """
        names = list(global_model)
        floating = {
            place for place, name in enumerate(names) if self._dtypes[name].is_floating_point
        }
        told = [
            reply.trainable
            for reply in replies
            if reply.trainable and floating.issuperset(reply.trainable)
        ]
        common = max(sorted(set(told)), key=told.count) if told else None
        if self.settings.trainable is None and self.state.rounds == 0 and common is not None:
            if 2 * told.count(common) >= len(replies):
                trainable = tuple(names[place] for place in common)
                self.settings = replace(self.settings, trainable=trainable)
                logger.info("\tThe clients take the arrays %s as trainable", list(common))
            else:
                logger.warning(
                    "fewer than half of the clients take the arrays %s as trainable: every "
                    "floating array counts; give FedPW(array_names=...)",
                    list(common),
                )
        agreed = self.settings.trainable
        expected = None if agreed is None else tuple(sorted(names.index(name) for name in agreed))
        good, odd = [], []
        for reply in replies:
            sound = reply.trainable is None or (
                bool(reply.trainable) and floating.issuperset(reply.trainable)
            )
            if sound and (expected is None or reply.trainable in (None, expected)):
                good.append(reply)
                continue
            reason = f"it takes the arrays {list(reply.trainable or ())} as trainable, "
            if not sound:
                reason += "which are not floating arrays of the model"
            else:
                reason += f"the others {list(expected or ())}"
            odd.append(BadReply(reply.node_id, reply.client, reason))
        return good, odd


def _refuse_incompatible_clients(good: Sequence[TrainReply], bad: Sequence[BadReply]) -> None:
    """Notice that no client of the round can work with what the server asks for.

    Raises
    ------
    RuntimeError
        If every client failed because of a mod in front of FedPW's.
    """
    words = (NEEDS_DENSE, HIDES_UPDATES)
    told = [reply for reply in bad if reply.fate != "empty"]
    if good or not told:
        return
    if all(r.fate == "failed" and any(word in r.reason for word in words) for r in told):
        raise RuntimeError(f"no client can take part: {told[0].reason}")


def _log_bounded(
    phase: str, server_round: int, step: ServerStep, reported: Mapping[int, float | None]
) -> None:
    """Name the clients whose loss or weight was out of bounds."""
    weights = step.weights
    for client, loss, weight, unbounded in zip(
        step.clients, step.losses, weights.weights, weights.unbounded, strict=True
    ):
        told = reported[client]
        if told is not None and told != loss:
            logger.warning(
                "%s: round %s, client %s reports the loss %g, which is too far from the median of "
                "the round and counts as %g (max_loss_ratio)",
                *(phase, server_round, client, told, loss),
            )
        if weight < unbounded:
            logger.warning(
                "%s: round %s, client %s would have the weight %.3f and gets %.3f (max_weight)",
                *(phase, server_round, client, unbounded, weight),
            )


def _log_kinds(model: Mapping[str, torch.Tensor], kinds: Mapping[str, TensorKind]) -> None:
    """Log how many arrays are what, and what was assumed of a list that seems to hold BatchNorm."""
    numbers = Counter(kinds.values())
    logger.info(
        "\tArrays of the model: %s trainable, %s running statistics or other buffers, %s integer",
        *(numbers[kind] for kind in TensorKind),
    )
    if has_names(list(model)) or not any(
        kind is TensorKind.INTEGER and model[name].dim() == 0 for name, kind in kinds.items()
    ):
        return
    assumed = [int(name) for name, kind in kinds.items() if kind is TensorKind.BUFFER]
    logger.warning(
        "The arrays of the model have no names, and some are counters, as BatchNorm has. %s. All "
        "other floating arrays count as trainable. To be sure, name the arrays: ArrayRecord("
        "model.state_dict()), or in the legacy API FedPW(array_names=list(model.state_dict()))",
        f"Arrays {assumed} stand before a counter and are taken as running statistics"
        if assumed
        else "No counter has two 1-d arrays of equal length before it, so none is taken as a "
        "running statistic",
    )


def _of_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert an array that another strategy computed; what counts is rounded to nearest."""
    if tensor.dtype == dtype or dtype.is_floating_point:
        return tensor.to(dtype)
    return tensor.round().to(dtype)


def _dtype(text: str) -> torch.dtype:
    dtype = getattr(torch, text.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"not a saved state of FedPW: {text!r} is no dtype")
    return dtype


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        allowed = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}={value!r}: choose {allowed}")


def _loops_on(device: torch.device | str) -> str:
    """Return which loops compute the server step, as the summary has it."""
    if torch.device(device).type != "cpu":
        return ""
    reason = why_not_compiled()
    if reason:
        return f"; slower than it could be for large models: {reason}"
    return ", loops of large models compiled by Numba"
