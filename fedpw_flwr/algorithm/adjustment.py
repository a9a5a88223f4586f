"""Parameter Adjustment (PA), the paper's parameter view: mask what is redundant, amplify consensus.

Each client's update loses its entries of smallest magnitude, strong clients more of them. In the
aggregated update the entries on which the clients agree most are amplified by as much as the
masking took away. All functions work on one flattened tensor, in place where they say so.

Every selection is O(n), without a sort, and the consensus score needs two running sums over the
clients instead of an N×n matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from fedpw_flwr.algorithm.bounds import bounded_losses, floored_losses
from fedpw_flwr.algorithm.tensors import is_nonnegative


def drop_rates(losses: Tensor, avg_drop_rate: float) -> Tensor:
    """Drop rate of every client: r_k = min(1, r̄ · (1/ℓ_k) / mean_j(1/ℓ_j)), ℓ_k ≥ 0, shape (N,).

    r̄ is the rate of a client with the mean inverse loss; clients with smaller losses drop more.
    """
    inverse = 1.0 / floored_losses(losses)
    return (avg_drop_rate * inverse / inverse.mean()).clamp(max=1.0)


def requested_rates(
    relative_losses: Sequence[float | None], avg_drop_rate: float, max_loss_ratio: float | None
) -> list[float]:
    """Drop rates for clients that are about to train, from what is known of their losses.

    Of each selected client u_k of its last visit, which compares with those of other rounds; None
    for one never seen, which gets r̄. `max_loss_ratio` is that of `bounded_losses`.
    """
    known = [loss for loss in relative_losses if loss is not None]
    if not known:
        return [avg_drop_rate] * len(relative_losses)
    bounded = bounded_losses(torch.tensor(known, dtype=torch.float64), max_loss_ratio)
    rates = iter(drop_rates(bounded, avg_drop_rate).tolist())
    return [avg_drop_rate if loss is None else next(rates) for loss in relative_losses]


def entry_count(entries: int, rate: float) -> int:
    """Return ⌊n·r + 1e-9⌋, the paper's ⌊n·r⌋ where rounding must not lose an entry."""
    return min(entries, math.floor(entries * rate + 1e-9))


def mask_smallest_(update: Tensor, count: int, magnitudes: Tensor) -> Tensor:
    """Set the ⌊n·r_k⌋ entries of Δ_k of smallest magnitude to 0, those of lower index first.

    Δ_k, shape (n,), becomes Δ̃_k in place; `magnitudes` is scratch of the same shape and dtype.
    Returns m_k, the mean magnitude of what was masked, 0-d; 0 where `count` is 0.
    """
    if count == 0:
        return update.new_zeros(())
    torch.abs(update, out=magnitudes)
    threshold, mean = _smallest(magnitudes, count)
    masked = _with_ties(magnitudes < threshold, magnitudes == threshold, count)
    update.masked_fill_(masked, 0.0)
    return mean


def unit_normalise_(update: Tensor) -> Tensor:
    """Divide by the norm in place: x_k = Δ̃_k / ‖Δ̃_k‖, 0 for a zero update; return the norm, 0-d."""
    norm: Tensor = torch.linalg.vector_norm(update)
    update.mul_(torch.where(norm > 0, 1.0 / norm, torch.zeros_like(norm)))
    return norm


def consensus_score_(total: Tensor, total_of_squares: Tensor) -> Tensor:
    """Consensus score of every entry: (Σ_k x_kj)² / Σ_k x_kj², 0 where every client masked j.

    A decreasing function of the paper's standard deviation over the clients of the unit-normalised
    entries; N where all clients agree, 0 where they cancel. Rounded to 16 significant bits: scores
    of clients that agree differ by rounding alone, and ties are to be ties. Both sums, shape (n,),
    are overwritten, `total` with the score.
    """
    tiny = torch.finfo(total.dtype).tiny
    score = total.square_().div_(total_of_squares.clamp_(min=tiny))
    bits, dropped = (torch.int64, 37) if score.dtype == torch.float64 else (torch.int32, 8)
    # Floats that are not negative are in the order of their bits: half a step up, the rest cut off.
    score.view(bits).add_(1 << (dropped - 1)).bitwise_and_(-1 << dropped)
    return score


def consensus_set(score: Tensor, count: int) -> Tensor:
    """Return membership of C, bool, shape (n,): the ⌊n·r̄⌋ entries of largest score ≥ 0.

    Ties by lower index.
    """
    left_out = score.numel() - count
    if count == 0 or left_out == 0:
        return torch.full_like(score, left_out == 0, dtype=torch.bool)
    threshold, _ = _smallest(score, left_out)
    return _with_ties(score > threshold, score == threshold, count)


def amplification_factor(
    update: Tensor, members: Tensor, count: int, discarded_magnitude: Tensor
) -> Tensor:
    """Return f = 1 + m/a with a = mean_{j∈C} |g_j|, 0-d, in [1, 2); 1 unless a ≠ 0 and m/a < 1.

    g, shape (n,), is `update` of one tensor, `count` the size of C, m = mean_k m_k, 0-d.
    """
    if count == 0:
        return update.new_ones(())
    consensus_magnitude = torch.where(members, update, 0.0).abs_().sum() / count
    return factor_of_magnitudes(consensus_magnitude, discarded_magnitude)


def factor_of_magnitudes(consensus: Tensor, discarded: Tensor) -> Tensor:
    """Return f = 1 + m/a, given a and m, of any shape; 1 unless a ≠ 0 and m/a < 1."""
    ratio = discarded / consensus
    return torch.where((consensus > 0) & (ratio < 1.0), 1.0 + ratio, 1.0)


def amplify_(update: Tensor, members: Tensor, factor: Tensor) -> Tensor:
    """Multiply g by f on the consensus set C, in place."""
    return update.mul_(torch.where(members, factor.to(update.dtype), 1.0))


def keep_nonnegative_(
    moved: Tensor,
    start: Tensor,
    trained: Iterable[Tensor],
    members: Tensor | None = None,
    factor: float = 1.0,
) -> None:
    """Take the step without amplification where it went below 0 and nobody is below 0.

    A variance, a count or a rate has no negative entry in w (`start`) nor in any w_k (`trained`).
    So it has none in w − g, which lies between them, but f·g may go further (ALGORITHM.md, section
    4). Entries of `moved`, the next w on the CPU, are replaced in place; w_k are looked at only
    where one is negative. On C (`members`, bool, shape (n,)) g was multiplied by `factor`.
    """
    if not is_nonnegative(start) or is_nonnegative(moved):
        return
    if not all(is_nonnegative(tensor) for tensor in trained):
        return
    entries = moved.view(-1)
    below = (entries < 0).nonzero().squeeze(1)
    before = start.reshape(-1)[below].double().cpu()
    step = before - entries[below].double()
    if members is not None:
        step = torch.where(members[below.to(members.device)].cpu(), step / factor, step)
    # What is left below 0 is rounding.
    entries[below] = (before - step).clamp_(min=0.0).to(moved.dtype)


def _smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count`-th smallest of values that are not negative, and the mean of so many."""
    if values.device.type == "cpu":
        # NumPy's introselect runs on vector instructions, `torch.kthvalue` is several times slower;
        # and the last bit of its sums does not depend on the number of threads.
        parted = np.partition(values.numpy(), count - 1)
        mean = float(parted[:count].sum(dtype=np.float64)) / count
        return values.new_tensor(parted[count - 1]), values.new_tensor(mean)
    threshold = torch.kthvalue(values, count).values
    below = values < threshold
    total = torch.where(below, values, 0.0).sum() + threshold * (count - below.sum())
    return threshold, total / count


def _with_ties(chosen: Tensor, ties: Tensor, count: int) -> Tensor:
    """Add as many of the ties as make up `count` entries, those of lower index first."""
    room = count - torch.count_nonzero(chosen)
    if chosen.device.type == "cpu":
        chosen[torch.nonzero(ties).reshape(-1)[: int(room)]] = True
        return chosen
    return chosen | (ties & (torch.cumsum(ties, 0) <= room))
