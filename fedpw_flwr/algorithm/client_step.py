"""Parameter Adjustment on the client: mask the update, rescale it where the clients agreed before.

A client can only use what the server knew before the round, so everything is one round late: its
drop rate comes from the losses reported last, and instead of amplifying the aggregated update the
clients multiply their own by the factors f of the last round on its consensus sets C. The server
applies the same two steps to the update of a client that did not, so that both may meet in a round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedpw_flwr.algorithm.adjustment import amplify_, entry_count, mask_smallest_
from fedpw_flwr.algorithm.tensors import is_nonnegative, saturated, working_dtype


@dataclass(frozen=True, eq=False)
class Consensus:
    """Where the clients of a round agreed, and by how much to rescale there in the next one.

    Attributes
    ----------
    round : int
        Number of the aggregated round it was measured in, counting from 1.
    members : Mapping[str, Tensor]
        Membership of the consensus set C of each rescaled tensor: bool, shape (n,), on the CPU.
    factors : Mapping[str, float]
        f of the same tensors, each above 1 and below 2. Tensors with f = 1 are left out.
    """

    round: int
    members: Mapping[str, Tensor]
    factors: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class AdjustmentState:
    """What the server carries from round to round for clients that adjust their own updates.

    Attributes
    ----------
    relative_losses : Mapping[int, float]
        u_k of each client ever seen, from its last visit, by client id.
    consensus : Consensus | None
        C and f of the last aggregated round with masked updates.
    """

    relative_losses: Mapping[int, float] = field(default_factory=dict)
    consensus: Consensus | None = None


@dataclass(frozen=True)
class SentAdjustment:
    """What the server asked the clients of a round to do.

    Attributes
    ----------
    rates : Mapping[int, float] | None
        Drop rate r_k sent to each client, by identity; None in the first round, in which updates
        stay as they are.
    consensus : Consensus | None
        C and f sent to all of them; None until a round with masked updates was aggregated.
    """

    rates: Mapping[int, float] | None = None
    consensus: Consensus | None = None


@dataclass(frozen=True, kw_only=True)
class AppliedAdjustment:
    """What a client says it did to its update.

    Attributes
    ----------
    rate : float
        The drop rate r_k it masked with.
    discarded : Mapping[str, float]
        m_k of every tensor: the mean magnitude of the entries it masked, 0 where there are none.
    norms : Mapping[str, float]
        ‖Δ̃_k‖ of every tensor when the client had adjusted it: something may have clipped the
        update afterwards. Empty where it is not known.
    """

    rate: float
    discarded: Mapping[str, float]
    norms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientResult:
    """What one client brings to a round.

    Attributes
    ----------
    client : int
        Client id, the same in every round.
    tensors : Mapping[str, Tensor]
        w_k, the client's model after training; may decode on access.
    loss : float | None
        ℓ_k, mean training loss over all local batches. Needed unless both parts of the method are
        switched off.
    num_examples : float | None
        Number of training examples; only used where `adapt_weights` is off.
    applied : AppliedAdjustment | None
        What the client did to its update before sending; None where w_k is as trained.
    """

    client: int
    tensors: Mapping[str, Tensor]
    loss: float | None = None
    num_examples: float | None = None
    applied: AppliedAdjustment | None = None


def rescaled(consensus: Consensus | None, name: str) -> tuple[Tensor | None, float]:
    """Return C, bool, shape (n,), and f of a tensor; None and 1 where it is not rescaled."""
    if consensus is None or name not in consensus.members:
        return None, 1.0
    return consensus.members[name], consensus.factors[name]


def is_adjustable(tensor: Tensor) -> bool:
    """Return whether a client may adjust a tensor: floating, and not a single number (0-d)."""
    return tensor.is_floating_point() and tensor.dim() > 0 and tensor.numel() > 0


def adjust_tensor(
    start: Tensor,
    trained: Tensor,
    rate: float,
    members: Tensor | None = None,
    factor: float = 1.0,
    device: torch.device | str = "cpu",
    *,
    keep_sign: bool = True,
) -> tuple[Tensor, Tensor]:
    """Mask one tensor of an update and rescale it on the consensus set.

    Of Δ_k = w − w_k the ⌊n·r_k⌋ entries of smallest magnitude become 0, then those in C (`members`,
    bool, shape (n,)) are multiplied by f; with `keep_sign` not those that would become negative
    where neither w nor w_k has a negative entry.

    Returns
    -------
    tuple[Tensor, Tensor]
        Δ̃_k, flat, on `device`, in float32 (float64 for float64 tensors), and m_k, 0-d.
    """
    with torch.no_grad():
        dtype = working_dtype(start.dtype)
        begin = start.reshape(-1).to(device, dtype)
        update = torch.sub(begin, trained.reshape(-1).to(device, dtype))
        count = entry_count(update.numel(), rate)
        discarded = mask_smallest_(update, count, torch.empty_like(update) if count else update)
        if members is not None:
            members = members.to(device)
            if keep_sign and is_nonnegative(start) and is_nonnegative(trained):
                members = members & (update * factor <= begin)
            amplify_(update, members, torch.tensor(factor, dtype=dtype, device=device))
        return update, discarded


def subtract_update(start: Tensor, update: Tensor) -> Tensor:
    """Return w − Δ̃_k on the CPU, in the shape and dtype of w; half precision saturates.

    Δ̃_k is as `adjust_tensor` returns it, and not modified.
    """
    with torch.no_grad():
        moved = torch.sub(start.reshape(-1).to(update.device, update.dtype), update)
        return saturated(moved, start.dtype).reshape(start.shape).cpu()


@dataclass(frozen=True, eq=False)
class AdjustedTensors(Mapping[str, Tensor]):
    """A trained model w_k that came unadjusted, seen as the client would have sent it.

    Tensors are adjusted when they are asked for, and again when they are asked for again: nothing
    of the size of a model is kept. `rate` and `consensus` are what the client was sent; `discarded`
    has m_k of the tensors that were adjusted so far.
    """

    global_model: Mapping[str, Tensor]
    trained: Mapping[str, Tensor]
    rate: float
    consensus: Consensus | None
    keep_sign: bool = True
    discarded: dict[str, float] = field(default_factory=dict, init=False)

    def is_adjusted(self, name: str) -> bool:
        """Return whether a tensor is not given as it was trained."""
        asked_for = self.rate != 0 or rescaled(self.consensus, name)[0] is not None
        return asked_for and is_adjustable(self.global_model[name])

    def keeps_sign(self, name: str) -> bool:
        """Return whether no entry of a tensor may become negative."""
        both = (self.global_model[name], self.trained[name])
        return self.keep_sign and all(is_nonnegative(tensor) for tensor in both)

    def __getitem__(self, name: str) -> Tensor:
        """Adjust one tensor; integer and 0-d ones are given as they are."""
        start, trained = self.global_model[name], self.trained[name]
        if not self.is_adjusted(name):
            return trained
        agreed = rescaled(self.consensus, name)
        update, discarded = adjust_tensor(
            start, trained, self.rate, *agreed, keep_sign=self.keep_sign
        )
        self.discarded[name] = float(discarded)
        return subtract_update(start, update)

    def __iter__(self) -> Iterator[str]:
        return iter(self.trained)

    def __len__(self) -> int:
        return len(self.trained)

    def discarded_magnitude(self, name: str) -> float:
        """Return m_k of one tensor, 0 where nothing was masked."""
        if name not in self.discarded:
            self[name]
        return self.discarded.get(name, 0.0)
