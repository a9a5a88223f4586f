"""FedHEAL: what changes its mind is noise; who is left far behind counts more.

Under domain skew a parameter that matters to a client is moved in the same direction round after
round. Entries that go against their own habit are dropped before averaging, so that they cannot
drown what others need, and the weights move towards the clients that the global model is far from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import torch
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult
from fedpw_flwr.algorithm.tensors import TensorKind
from fedpw_flwr.baselines.averaging import (
    RoundWeights,
    kinds_of,
    normalised,
    squared_norms,
    update_of,
)
from fedpw_flwr.baselines.screened import FedAvgOptions, ScreenedStrategy
from fedpw_flwr.baselines.settings import number_in
from fedpw_flwr.baselines.simplex import ClientShares

__all__ = ["ClientHabits", "FedHEAL", "FedHEALMemory", "KeptUpdates"]


@dataclass(frozen=True, eq=False)
class ClientHabits:
    """How often each entry of a client's update went which way.

    Attributes
    ----------
    rounds : int
        Rounds in which the client took part.
    fell, rose : Mapping[str, Tensor]
        Rounds in which training made an entry smaller (Δ_k > 0) or larger, flat, by trainable
        array. Their type is as small as `rounds` allows.
    """

    rounds: int = 0
    fell: Mapping[str, Tensor] = field(default_factory=dict)
    rose: Mapping[str, Tensor] = field(default_factory=dict)

    def after(
        self, global_model: Mapping[str, Tensor], trained: Mapping[str, Tensor]
    ) -> ClientHabits:
        """Return the counts with one more round."""
        rounds = self.rounds + 1
        dtype = _counter_dtype(rounds)
        fell, rose = {}, {}
        for name, start in _trainable(global_model):
            update = update_of(start, trained[name])
            fell[name] = _counted(self.fell.get(name), update > 0, dtype)
            rose[name] = _counted(self.rose.get(name), update < 0, dtype)
        return ClientHabits(rounds, fell, rose)

    def kept(self, name: str, update: Tensor, tau: float) -> Tensor:
        """Return which entries of an update are consistent with the rounds so far, bool, flat."""
        same = torch.where(update > 0, self.fell[name], self.rose[name])
        # 0.1 · 30 is a little above 3 in binary; the share 3 of 30 is meant to meet τ = 0.1.
        return same >= math.ceil(tau * self.rounds - 1e-9)


def _counted(before: Tensor | None, happened: Tensor, dtype: torch.dtype) -> Tensor:
    once = happened.to(dtype)
    return once if before is None else before.to(dtype) + once


def _counter_dtype(rounds: int) -> torch.dtype:
    """Return the smallest type that holds a count of rounds: there is one for every parameter."""
    if rounds <= torch.iinfo(torch.uint8).max:
        return torch.uint8
    return torch.int16 if rounds <= torch.iinfo(torch.int16).max else torch.int32


def _trainable(model: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, kind in kinds_of(model).items():
        if kind is TensorKind.TRAINABLE:
            yield name, model[name]


class KeptUpdates(Mapping[str, Tensor]):
    """A trained model without what is inconsistent in its update: those entries are w's.

    Parameters
    ----------
    global_model : Mapping[str, Tensor]
        w.
    trained : Mapping[str, Tensor]
        w_k.
    habits : ClientHabits
        The client's counts, this round's included.
    tau : float
        τ.
    """

    def __init__(
        self,
        global_model: Mapping[str, Tensor],
        trained: Mapping[str, Tensor],
        habits: ClientHabits,
        tau: float,
    ) -> None:
        self._global_model = global_model
        self._trained = trained
        self._habits = habits
        self._tau = tau

    def __getitem__(self, name: str) -> Tensor:
        """Return one tensor, computed when it is asked for and not kept."""
        trained = self._trained[name]
        if name not in self._habits.fell:
            return trained
        start = self._global_model[name]
        kept = self._habits.kept(name, update_of(start, trained), self._tau)
        return torch.where(kept.reshape(start.shape), trained, start)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._trained)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._trained)


@dataclass(frozen=True, eq=False)
class FedHEALMemory:
    """What FedHEAL carries from round to round.

    Attributes
    ----------
    habits : Mapping[int, ClientHabits]
        By client.
    shares : ClientShares
        p.
    momenta : Mapping[int, float]
        δp_k, by client.
    """

    habits: Mapping[int, ClientHabits] = field(default_factory=dict)
    shares: ClientShares = field(default_factory=ClientShares)
    momenta: Mapping[int, float] = field(default_factory=dict)


class FedHEAL(ScreenedStrategy):
    """FedHEAL.

    Chen, Huang, Ye, "Fair Federated Learning under Domain Skew with Local Consistency and Domain
    Diversity", CVPR 2024, arXiv 2405.16585. With Δ_k = w − w_k over the trainable arrays:

    *Parameter update consistency.* C_k of an entry is the share of client k's rounds, this one
    included, in which the entry moved in the direction it moves in now. Entries with C_k < τ are
    discarded: Δ̃_k is 0 there, Δ_k elsewhere.

    *Weights.* With d_k = ‖Δ̃_k‖, the distance of the client's model to the global one,

        δp_k ← (1−β) δp_k + β d_k² / Σ_j d_j²
        p_k ← normalise(p_k + δp_k)
        w ← w − Σ_k p_k Δ̃_k

    Choices of this package, where the paper may differ: the present round counts in C_k, so nothing
    is discarded in a client's first round. An entry that did not move counts for neither direction.
    p begins equal, δp at 0. Running statistics and counters are not masked, have no part in d_k,
    and are averaged with p. Where all d_k are 0, equal shares take the place of d_k² / Σ d². Where
    not all clients take part, p is divided anew among the participants, whose sum stays with them;
    absent clients keep p_k, δp_k and their counts, and a client that is seen first comes in with
    the average p.

    The counts take two bytes a parameter and client in memory and in checkpoints (four after 255
    rounds of a client).

    Parameters
    ----------
    tau : float (default: 0.3)
        τ in [0, 1]. 0 keeps everything; above ½ also entries are discarded that move as often
        one way as the other.
    beta : float (default: 0.4)
        β in [0, 1], momentum of the weights. 0: they stay equal. τ and β are to be tuned for a
        data set.
    train_loss_key : str (default: "train_loss")
        MetricRecord key of the training loss; recorded, not needed.
    **options : FedAvgOptions
        As in Flower's FedAvg.

    Raises
    ------
    TypeError
        If a setting is not a number.
    ValueError
        If a setting is outside its range.
    """

    def __init__(
        self,
        *,
        tau: float = 0.3,
        beta: float = 0.4,
        train_loss_key: str = "train_loss",
        **options: Unpack[FedAvgOptions],
    ) -> None:
        self.tau = number_in("tau", tau, 0.0, 1.0)
        self.beta = number_in("beta", beta, 0.0, 1.0)
        super().__init__(train_loss_key=train_loss_key, **options)
        self.memory = FedHEALMemory()

    @property
    def settings(self) -> dict[str, Any]:
        """The method's hyper-parameters."""
        return {"tau": self.tau, "beta": self.beta}

    def weigh(
        self, global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
    ) -> tuple[RoundWeights, FedHEALMemory]:
        """Discard what is inconsistent, and weight by distance."""
        memory = self.memory
        habits = {
            result.client: memory.habits.get(result.client, ClientHabits()).after(
                global_model, result.tensors
            )
            for result in results
        }
        kept = {
            result.client: KeptUpdates(
                global_model, result.tensors, habits[result.client], self.tau
            )
            for result in results
        }
        distances = squared_norms(
            global_model, [ClientResult(client, tensors) for client, tensors in kept.items()]
        )
        clients = list(kept)
        momenta = {
            client: (1.0 - self.beta) * memory.momenta.get(client, 0.0) + self.beta * share
            for client, share in zip(clients, normalised(distances), strict=True)
        }
        weights = normalised(
            [
                share + momenta[client]
                for client, share in zip(clients, memory.shares.of(clients), strict=True)
            ]
        )
        after = FedHEALMemory(
            habits={**memory.habits, **habits},
            shares=memory.shares.moved(clients, weights),
            momenta={**memory.momenta, **momenta},
        )
        return RoundWeights.of_mean(weights, kept), after

    def remember(self, memory: FedHEALMemory) -> None:
        """Take the memory of the next round."""
        self.memory = memory

    def saved_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return everything that is carried from round to round: JSON, and tensors by name."""
        state, tensors = super().saved_state()
        memory = self.memory
        nested = {
            **state,
            "shares": memory.shares.to_dict(),
            "momenta": {str(client): momentum for client, momentum in memory.momenta.items()},
            "client_rounds": {str(client): one.rounds for client, one in memory.habits.items()},
        }
        counts = {
            f"{way}/{client}/{name}": count
            for client, one in memory.habits.items()
            for way, counted in (("fell", one.fell), ("rose", one.rose))
            for name, count in counted.items()
        }
        return nested, {**tensors, **counts}

    def restore_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Set the strategy to what `saved_state` returned.

        Raises
        ------
        ValueError
            If it is not such a state.
        """
        try:
            memory = FedHEALMemory(
                habits={
                    int(client): ClientHabits(
                        int(rounds),
                        _below(f"fell/{client}/", tensors),
                        _below(f"rose/{client}/", tensors),
                    )
                    for client, rounds in state["client_rounds"].items()
                },
                shares=ClientShares.from_dict(state["shares"]),
                momenta={int(client): float(one) for client, one in state["momenta"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a saved state of FedHEAL: {error!r}") from error
        super().restore_state(state, tensors)
        self.memory = memory


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
