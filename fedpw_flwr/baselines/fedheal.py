"""FedHEAL: what changes its mind is noise; who is left far behind counts more.

Under domain skew a parameter that matters to a client is moved in the same direction round after
round. Entries that go against their own habit are left out of the average, so that they cannot
drown what others need, and the weights move towards the clients that the global model is far from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import torch
from torch import Tensor

from fedpw_flwr.algorithm import ClientResult
from fedpw_flwr.baselines.averaging import RoundWeights, normalised, trainable_names, update_of
from fedpw_flwr.baselines.screened import ScreenedStrategy, number_in
from fedpw_flwr.rounds.run_state import tensors_below
from fedpw_flwr.strategy.options import BaselineOptions


@dataclass(frozen=True, eq=False)
class ClientMemory:
    """What FedHEAL remembers of a client: its weight, and how often each entry went which way.

    Attributes
    ----------
    weight, momentum : float
        p_k and δp_k, in units of p_k at the beginning.
    rounds : int
        Rounds in which the client took part.
    rose : Mapping[str, Tensor]
        Rounds in which training made an entry larger (Δ_k < 0), flat, by trainable array; in the
        others Δ_k ≥ 0. Their type is as small as `rounds` allows.
    """

    weight: float = 1.0
    momentum: float = 0.0
    rounds: int = 0
    rose: Mapping[str, Tensor] = field(default_factory=dict)

    def kept(self, name: str, update: Tensor, tau: float) -> Tensor:
        """Return which entries of the next Δ_k of an array have C_k > τ, bool, flat; first all."""
        if self.rounds == 0:
            return torch.ones_like(update, dtype=torch.bool)
        # 0.3 · 10 may be a little below 3 in binary; 3 of 10 rounds are not more than τ = 0.3.
        most = math.floor(tau * self.rounds + 1e-9)
        rose = self.rose[name]
        return torch.where(update < 0, rose > most, rose < self.rounds - most)

    def observed(
        self, global_model: Mapping[str, Tensor], trained: Mapping[str, Tensor], tau: float
    ) -> tuple[ClientMemory, float]:
        """Return the counts with one more round, from w and w_k, and d_k of what is kept of Δ_k."""
        rounds, distance, rose = self.rounds + 1, 0.0, {}
        dtype = _counter_dtype(rounds)
        for name in trainable_names(global_model):
            update = update_of(global_model[name], trained[name])
            rose[name] = (update < 0).to(dtype)
            if name in self.rose:
                rose[name] += self.rose[name]
            update.mul_(self.kept(name, update, tau))
            distance += float(torch.linalg.vector_norm(update))
        return replace(self, rounds=rounds, rose=rose), distance


def _counter_dtype(rounds: int) -> torch.dtype:
    """Return the smallest type that holds a count of rounds: there is one for every parameter."""
    if rounds <= torch.iinfo(torch.uint8).max:
        return torch.uint8
    return torch.int16 if rounds <= torch.iinfo(torch.int16).max else torch.int32


def average_weight(rounds: int, beta: float) -> float:
    """Return what p is after some rounds in each of which d was the average of the participants.

    1 + Σ_{s=1}^{rounds} (1 − (1−β)^s), in units of p at the beginning.
    """
    return 1.0 + sum(1.0 - (1.0 - beta) ** age for age in range(1, rounds + 1))


class FedHEAL(ScreenedStrategy):
    """FedHEAL.

    Chen, Huang, Ye, "Fair Federated Learning under Domain Skew with Local Consistency and Domain
    Diversity", CVPR 2024, arXiv 2405.16585. With Δ_k = w − w_k over the trainable arrays:

    *Parameter update consistency.* C_k of an entry is the share of client k's earlier rounds in
    which the entry moved in the direction it moves in now, Δ_k ≥ 0 or Δ_k < 0; as in the authors'
    program an entry that stays as it is counts with the former. Entries with C_k > τ are kept, the
    others discarded; in a client's first round all are kept. M_k is 1 where an entry is kept, 0
    elsewhere, and Δ̃_k = M_k Δ_k.

    *Weights.* d_k = Σ_l ‖Δ̃_k,l‖ over the arrays l, the distance of the client's model to the
    global one, and

        δp_k ← (1−β) δp_k + β d_k / Σ_j d_j
        p_k ← p_k + δp_k

    *Aggregation.* Each entry is averaged over those who keep it; where nobody does, w stays:

        w ← w − Σ_k p_k Δ̃_k / Σ_k p_k M_k

    Elsewhere (in the reported weights, in the mean of running statistics and counters) a client
    counts p_k / Σ_j p_j.

    The formulas are this package's reading of the published method; it was not compared with a run
    of the authors' own program. Choices of this package:

    * p_k begins with 1/N, δp_k with 0, and the round's own d_k is in the p_k it is summed with.
    * The defaults of τ and β are to be tuned for a data set.
    * Running statistics and counters have no M_k and no part in d_k.
    * Where all d_k are 0, equal shares take the place of d_k / Σ d.
    * Where not all clients take part, N is the number of participants, and sums run over them. p
      grows with every round of a client, so it is divided by what a client of average d would have
      in as many rounds (`average_weight`), lest those who are drawn more often count more; with
      full participation this changes nothing. Absent clients keep p_k, δp_k and their counts, and
      a client that is seen first counts as the average one does, but for its δp_k.

    The counts take one byte a parameter and client in memory and in checkpoints (two after 255
    rounds of a client).

    Parameters
    ----------
    tau : float (default: 0.3)
        τ in [0, 1). 0 discards only what never went its present way before; from ½ on also entries
        are discarded that move as often one way as the other.
    beta : float (default: 0.4)
        β in [0, 1], momentum of the weights. 0: they stay equal.
    **options : BaselineOptions
        As in `ScreenedStrategy`.

    Raises
    ------
    TypeError, ValueError
        If a setting is not a number, or outside its range.
    """

    hyperparameters = ("tau", "beta")
    memory: Mapping[int, ClientMemory]

    def __init__(
        self, *, tau: float = 0.3, beta: float = 0.4, **options: Unpack[BaselineOptions]
    ) -> None:
        self.tau = number_in("tau", tau, 0.0, 1.0, below=True)
        self.beta = number_in("beta", beta, 0.0, 1.0)
        super().__init__(**options)
        self.memory = {}

    def weigh(
        self, global_model: Mapping[str, Tensor], results: Sequence[ClientResult]
    ) -> tuple[RoundWeights, Mapping[int, ClientMemory]]:
        """Keep what is consistent, and weight by distance."""
        before = {one.client: self.memory.get(one.client, ClientMemory()) for one in results}
        observed = [
            before[result.client].observed(global_model, result.tensors, self.tau)
            for result in results
        ]
        distances = normalised([distance for _, distance in observed])
        after = []
        for (counted, _), share in zip(observed, distances, strict=True):
            momentum = (1.0 - self.beta) * counted.momentum + self.beta * len(results) * share
            after.append(replace(counted, weight=counted.weight + momentum, momentum=momentum))
        shares = normalised([one.weight / average_weight(one.rounds, self.beta) for one in after])

        def kept(client: int, name: str, update: Tensor) -> Tensor:
            return before[client].kept(name, update, self.tau)

        memory = {**self.memory, **dict(zip(before, after, strict=True))}
        return RoundWeights.of_mean(shares, kept), memory

    def saved_memory(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return weights, momenta and counts beside the number of rounds."""
        state, tensors = super().saved_memory()
        counts = {
            f"rose/{client}/{name}": count
            for client, one in self.memory.items()
            for name, count in one.rose.items()
        }
        nested = {
            "weights": {client: one.weight for client, one in self.memory.items()},
            "momenta": {client: one.momentum for client, one in self.memory.items()},
            "client_rounds": {client: one.rounds for client, one in self.memory.items()},
        }
        return {**state, **nested}, {**tensors, **counts}

    def restore_memory(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Set them to what `saved_memory` returned."""
        memory = {
            int(client): ClientMemory(
                float(state["weights"][client]),
                float(state["momenta"][client]),
                int(rounds),
                tensors_below(f"rose/{client}/", tensors),
            )
            for client, rounds in state["client_rounds"].items()
        }
        super().restore_memory(state, tensors)
        self.memory = memory
