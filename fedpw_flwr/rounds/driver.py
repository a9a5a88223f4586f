"""A round on the server, whichever method decides it and whichever of Flower's APIs carries it.

Begin: who is asked, with what. Finish: screen, step, identify, record. Strategies turn Flower's
arguments into records and back; the `Method` says what the next model is.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord, MetricRecord
from torch import Tensor

from fedpw_flwr.algorithm.tensors import (
    TensorKind,
    classify_tensors,
    has_names,
    is_nonnegative,
    saturated,
)
from fedpw_flwr.rounds.faults import BadReply, Project, refuse_shared_fault
from fedpw_flwr.rounds.global_model import check_model, too_large, without_private
from fedpw_flwr.rounds.identities import Identities
from fedpw_flwr.rounds.method import Method, Requests, Step
from fedpw_flwr.rounds.replies import Answer, AskedRound, EvaluateReply, TrainReply
from fedpw_flwr.rounds.screening import (
    metric_names,
    screen_evaluate_replies,
    screen_train_replies,
    without_uncounted,
)
from fedpw_flwr.rounds.standstill import Standstill
from fedpw_flwr.wire.adjustment import REQUEST_KEY
from fedpw_flwr.wire.arrays import ArrayTensors, encode_arrays, take_as_arrays

logger = logging.getLogger("flwr")

_CONFIGURED_BY = {"aggregate_train": "configure_train", "aggregate_fit": "configure_fit"}


@dataclass(frozen=True)
class Finished:
    """What became of a round.

    `arrays` are the next global model; the present one where no reply is `good`, which are those
    that were aggregated. The `bad` ones were set aside. `metrics` are what the method records.
    """

    arrays: ArrayRecord
    good: Sequence[TrainReply] = ()
    bad: Sequence[BadReply] = ()
    metrics: MetricRecord = field(default_factory=MetricRecord)


class Driver:
    """Plays the rounds of a method, and keeps what a round needs of those before it."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.identities = Identities()
        self.standstill = Standstill()
        self._global_arrays: ArrayRecord | None = None
        self._dtypes: dict[str, torch.dtype] = {}
        self.asked_nodes: frozenset[int] = frozenset()
        """Ids of the nodes that were asked to train in this round."""
        self._requests = Requests()
        self._failed: set[int] = set()
        self._restored = False

    @property
    def array_names(self) -> Collection[str]:
        """Names of the arrays that are part of the model; none before the first round."""
        return self._dtypes.keys()

    def saved_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return everything that is carried from round to round: JSON, and tensors by name."""
        memory, tensors = self.method.saved_memory()
        dtypes = {name: str(dtype) for name, dtype in self._dtypes.items()}
        return {**memory, "dtypes": dtypes, **self.identities.to_dict()}, tensors

    def restore_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Set it to what `saved_state` returned, among other keys; ValueError if it is not such."""
        try:
            identities = Identities.from_dict(state)
            dtypes = {
                name: getattr(torch, text.removeprefix("torch."))
                for name, text in state.get("dtypes", {}).items()
            }
            if not all(isinstance(dtype, torch.dtype) for dtype in dtypes.values()):
                raise TypeError(f"no dtypes: {dtypes}")
            self.method.restore_memory(state, tensors)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a saved state of {self.method.title}: {error!r}") from error
        self.identities, self._dtypes = identities, dtypes
        self._restored = True

    def begin(
        self,
        server_round: int,
        arrays: ArrayRecord,
        choose_nodes: Callable[[], Sequence[int]],
        ask_clients: Callable[[Sequence[int]], Mapping[int, int]],
    ) -> tuple[ArrayRecord, dict[int, Mapping[str, bytes]]]:
        """Begin a round: who is asked, with what.

        Returns the model that is sent, in the dtypes of the first round, and by node what its
        configuration is to hold beside the user's. `choose_nodes` waits for nodes and returns those
        that are to train. `ask_clients` asks nodes which client they are; it returns the client by
        node for those that tell.

        Raises
        ------
        ValueError
            If `trainable` names an array the model does not have, no array is floating, or one
            cannot be decoded or is not finite.
        TypeError
            If the model holds complex arrays, or `trainable` names one that is not floating.
        """
        arrays = self._checked_model(server_round, arrays)
        nodes = list(choose_nodes())
        # What a node only says counts for no more than what it is asked for.
        self.identities.introduced.update(ask_clients(self._strangers(nodes)))
        known = self.identities.by_node()
        requests = self.method.requests(
            list(arrays), {node: known.get(node, node) for node in nodes}
        )
        self._global_arrays, self._requests = arrays, requests
        self.asked_nodes = frozenset(nodes)
        entries: dict[int, Mapping[str, bytes]] = {node: {} for node in nodes}
        for node, request in requests.by_node.items():
            entries[node] = {REQUEST_KEY: request.encode(), **requests.shared}
        return arrays, entries

    def finish(
        self, phase: str, server_round: int, answers: Iterable[Answer], examples_key: str
    ) -> Finished:
        """End a round: screen the answers, step with those that can be used, record.

        Raises
        ------
        UnusableRepliesError
            If all replies of the first round have the same fault (`MissingLossError`: none reports
            the training loss), or three rounds from the start had none that can be used.
        RuntimeError
            If no round was begun.
        """
        method = self.method
        if self._global_arrays is None:
            raise RuntimeError(
                f"{phase} was called before {_CONFIGURED_BY[phase]}: {method.title} needs the "
                "model that the clients started from"
            )
        if not self.asked_nodes:
            return Finished(self._global_arrays.copy())
        # Screen: each answer alone, then against the others.
        project = Project(
            *(method.title, method.train_loss_key, examples_key, method.needs_loss),
            can_evaluate=bool(method.evaluate_loss_key),
        )
        is_first = method.rounds_done == 0
        answers = list(answers)
        asked = AskedRound(
            server_round,
            {node: self._requests.by_node.get(node) for node in self.asked_nodes},
            ArrayTensors(self._global_arrays),
            project,
            is_first,
        )
        good, bad, private = screen_train_replies(answers, asked, self.identities)
        self._failed.update(reply.node_id for reply in bad if reply.fate == "failed")
        if private:
            # They are the clients' own from now on.
            self._global_arrays = without_private(self._global_arrays, private)
            self._dtypes = {name: self._dtypes[name] for name in self._global_arrays}
            method.leave_out(private)
        model = ArrayTensors(self._global_arrays)
        if method.needs_examples:
            good, uncounted = without_uncounted(good, examples_key)
            bad += uncounted
        good, odd = method.screen(good, model)
        # Step: replies that are sound alone may together make a model that is too large.
        step, good, overgrown = self._step(good, model)
        bad += [*odd, *overgrown]
        silent = self.asked_nodes - {answer.node_id for answer in answers}
        self.identities.log(phase, server_round, len(good), bad, silent)
        if step is None:
            why = (bad, len(silent), is_first, project)
            self.standstill.add(phase, server_round, *why)
            return Finished(self._global_arrays.copy(), bad=bad)
        # Identify and record.
        for warning in step.warnings:
            logger.warning("%s: round %s, %s", phase, server_round, warning)
        arrays = take_as_arrays(step.model)
        method.remember(step.memory)
        self.standstill = Standstill()
        self.identities.note(phase, server_round, good)
        return Finished(arrays, good, bad, step.metrics)

    def screen_evaluation(
        self,
        server_round: int,
        answers: Iterable[Answer],
        asked: Collection[int] | None,
        examples_key: str,
    ) -> tuple[list[EvaluateReply], list[BadReply]]:
        """Separate a round's evaluation replies, and log what is wrong with the bad ones.

        `UnusableRepliesError` where the method needs their loss, and all have the same fault after
        its first round.
        """
        method, answers = self.method, list(answers)
        names = method.title, method.evaluate_loss_key, examples_key, method.needs_evaluation
        project = Project(*names, task="evaluate")
        good, bad = screen_evaluate_replies(answers, asked, self.identities, project)
        if project.needs_loss and not good and method.rounds_done <= 1:
            refuse_shared_fault(bad, server_round, metric_names(answers), project)
        # Another node than a client's own may speak in its name while it is silent.
        owner = self.identities.owners.get
        at_home = [one for one in good if owner(one.client, one.node_id) == one.node_id]
        method.note_evaluation({one.client: one.loss for one in at_home if one.loss is not None})
        silent = set(asked or ()) - {answer.node_id for answer in answers}
        self.identities.log("aggregate_evaluate", server_round, len(good), bad, silent)
        return good, bad

    # --- For one of Flower's server optimizers on top: its step is for what training moves --------

    def trained(self, arrays: ArrayRecord | None = None) -> ArrayRecord:
        """Return those arrays of a model that training moves; None is the model of the round."""
        if arrays is None:
            assert self._global_arrays is not None
            arrays = self._global_arrays
        kinds = classify_tensors(ArrayTensors(arrays), self.method.trainable)
        return ArrayRecord(
            {name: arrays[name] for name, kind in kinds.items() if kind is TensorKind.TRAINABLE}
        )

    def after_step_on_top(self, stepped: ArrayRecord, aggregate: ArrayRecord) -> ArrayRecord:
        """Return the aggregate with what a server optimizer made of its trained arrays.

        They get the model's dtypes again. Where the method keeps signs, entries that the optimizer
        took below 0, in an array that has none before and after the aggregation, stay as they were
        aggregated.
        """
        assert self._global_arrays is not None
        start, average = ArrayTensors(self._global_arrays), ArrayTensors(aggregate)
        moved = ArrayTensors(stepped)
        trained = {}
        for name in stepped:
            tensor = saturated(moved[name].clone(), self._dtypes[name])
            guarded = self.method.keeps_sign and not is_nonnegative(tensor)
            if guarded and is_nonnegative(start[name]) and is_nonnegative(average[name]):
                tensor = torch.where(tensor < 0, average[name], tensor)
            trained[name] = tensor
        return ArrayRecord({**aggregate, **encode_arrays(trained)})

    def _checked_model(self, server_round: int, arrays: ArrayRecord) -> ArrayRecord:
        """Check the model of a round, and give its arrays the dtypes of the first round.

        A server optimizer on top of the strategy computes in float64 and turns counters into
        floats; clients answer in the model's own dtypes.
        """
        model = ArrayTensors(arrays)
        dtypes = {name: model[name].dtype for name in model}
        is_first = not self._dtypes
        if self._dtypes.keys() != dtypes.keys():
            self._dtypes = dtypes
        if self._dtypes != dtypes:
            arrays = encode_arrays(
                {name: _of_dtype(model[name], dtype) for name, dtype in self._dtypes.items()}
            )
            model = ArrayTensors(arrays)
        kinds = classify_tensors(model, self.method.trainable)
        if is_first and self.method.trainable is None:
            _log_kinds(model, kinds)
        check_model(arrays, server_round)
        return arrays

    def _strangers(self, nodes: Sequence[int]) -> list[int]:
        """Return those of the nodes of which it would matter, and is not known, who they are.

        After a restart, when known clients are at new nodes: what they are asked for depends on it.
        """
        known = self.identities.by_node()
        unknown = [node for node in nodes if node not in known]
        if self._restored and self.method.asks_by_client and self.method.rounds_done > 0:
            return unknown
        # A client that fails in every round never says who it is.
        return [node for node in unknown if node in self._failed]

    def _step(
        self, replies: Sequence[TrainReply], model: ArrayTensors
    ) -> tuple[Step | None, list[TrainReply], list[BadReply]]:
        """Step; where a tensor comes out too large, again without its largest update."""
        good = list(replies)
        bad: list[BadReply] = []
        while good:
            step = self.method.step(model, good)
            name = next((name for name in step.model if too_large(name, step.model[name])), None)
            if name is None:
                return step, good, bad
            start = model[name].double()
            sizes = [float((reply.result.tensors[name] - start).norm()) for reply in good]
            largest = good.pop(sizes.index(max(sizes)))
            reason = f"with it, tensor {name!r} of the next model would be too large to go on from"
            bad.append(BadReply(largest.node_id, largest.client, reason))
        return None, [], bad


def _log_kinds(model: Mapping[str, Tensor], kinds: Mapping[str, TensorKind]) -> None:
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


def _of_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert an array that another strategy computed; what counts is rounded to nearest."""
    if tensor.dtype == dtype or dtype.is_floating_point:
        return tensor.to(dtype)
    return tensor.round().to(dtype)
