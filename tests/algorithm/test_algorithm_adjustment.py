"""Masking, consensus and amplification of one tensor, against sorts and N×n matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rounds import doubles

from fedpw_flwr.algorithm.adjustment import (
    amplification_factor,
    consensus_score_,
    consensus_set,
    entry_count,
    mask_smallest_,
    requested_rates,
    unit_normalise_,
)

claim = settings(max_examples=150, deadline=None)
small_integers = st.integers(-4, 4)


@pytest.mark.parametrize(
    ("entries", "rate", "count"),
    [
        # Rounding does not lose an entry: 100 · 0.29 < 29.
        *((100, rate, round(100 * rate)) for rate in (0.01, 0.29, 0.57, 0.58)),
        *((10, 0.2999, 2), (3, 0.3, 0), (7, 1.0, 7), (100, 1.13, 100)),
    ],
)
def test_the_number_of_entries_is_rounded_down(entries: int, rate: float, count: int) -> None:
    assert entry_count(entries, rate) == count


@claim
@given(st.lists(small_integers, min_size=1, max_size=30), st.data())
def test_the_masked_set_is_that_of_a_stable_sort(entries: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(entries)))
    update = torch.tensor(entries, dtype=torch.float32)
    mean = mask_smallest_(update, count, torch.empty(len(entries)))
    smallest = sorted(range(len(entries)), key=lambda j: (abs(entries[j]), j))[:count]
    assert update.tolist() == [0 if j in smallest else v for j, v in enumerate(entries)]
    expected = sum(abs(entries[j]) for j in smallest) / count if count else 0.0
    assert float(mean) == pytest.approx(expected, rel=1e-6)


@claim
@given(st.data())
def test_score_decreases_with_the_papers_standard_deviation(data: st.DataObject) -> None:
    clients = data.draw(st.integers(2, 6))
    entries = data.draw(st.integers(1, 12))
    row = st.lists(small_integers, min_size=entries, max_size=entries)
    updates = np.array(data.draw(st.lists(row, min_size=clients, max_size=clients)), dtype=float)

    norms = np.linalg.norm(updates, axis=1, keepdims=True)
    matrix = np.divide(updates, norms, out=np.zeros_like(updates), where=norms > 0)
    lengths = np.linalg.norm(matrix, axis=0)
    kept = lengths > 0
    deviation = (matrix[:, kept] / lengths[kept]).std(axis=0, ddof=1)

    total = torch.zeros(entries, dtype=torch.float64)
    squares = torch.zeros(entries, dtype=torch.float64)
    for update in torch.from_numpy(updates):
        normalised = update.clone()
        unit_normalise_(normalised)
        total += normalised
        squares += normalised**2
    score = consensus_score_(total, squares).numpy()

    assert (score[~kept] == 0).all()
    # Var = (Σu² − (Σu)²/N) / (N − 1) with Σu² = 1 and (Σu)² the score, to 16 significant bits.
    variance = (1 - score[kept] / clients) / (clients - 1)
    half_a_step = score[kept] * 2.0**-16 / (clients * (clients - 1))
    assert (np.abs(variance - deviation**2) <= half_a_step + 1e-12).all()


@claim
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.data())
def test_the_consensus_set_is_that_of_a_stable_sort(score: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(score)))
    scores = torch.tensor(score).double()
    members = consensus_set(scores, count)
    assert scores.tolist() == score
    largest = sorted(range(len(score)), key=lambda j: (-score[j], j))[:count]
    assert members.tolist() == [j in largest for j in range(len(score))]


def test_amplification_makes_up_for_what_masking_took() -> None:
    members = torch.tensor([True, False, True])
    factor = amplification_factor(doubles(4.0, 9.0, -2.0), members, 2, doubles(1.5)[0])
    assert float(factor) == pytest.approx(1 + 1.5 / 3.0)


@pytest.mark.parametrize(
    ("update", "members", "discarded"),
    [
        # Masking took as much as the consensus holds, the consensus is zero, or empty.
        *(((4.0, -2.0), [True, True], discarded) for discarded in (3.0, 3.5, 1e9)),
        *(((0.0, 5.0), [True, False], discarded) for discarded in (0.0, 1.0)),
        ((1.0, 5.0), [False, False], 1.0),
    ],
)
def test_nothing_is_amplified_where_the_consensus_does_not_outweigh_what_masking_took(
    update: tuple[float, float], members: list[bool], discarded: float
) -> None:
    chosen = torch.tensor(members)
    factor = amplification_factor(doubles(*update), chosen, sum(members), doubles(discarded)[0])
    assert float(factor) == 1.0


def test_requested_rates_by_hand() -> None:
    assert requested_rates([], 0.3, 10.0) == []
    assert requested_rates([None, None], 0.3, 10.0) == [0.3, 0.3]
    assert requested_rates([1.0, None, 3.0], 0.3, 10.0) == pytest.approx([0.45, 0.3, 0.15])
    assert requested_rates([0.0, 0.0], 0.3, 10.0) == pytest.approx([0.3, 0.3])
    # A loss of 0 counts as a thousandth of the mean, here 0.0005.
    assert requested_rates([0.0, 1.0], 0.3, None) == pytest.approx(
        [0.3 * 2000 / 1000.5, 0.3 / 1000.5]
    )
    assert requested_rates([0.001, 1.0, 1.0, 1.0], 0.3, None)[0] == 1.0
    # Within a factor of 2 of the median: 1/2, 1, 1 and 2, with inverses 2, 1, 1 and 1/2.
    bounded = requested_rates([0.001, 1.0, 1.0, 9.0], 0.3, 2.0)
    assert bounded == pytest.approx([0.3 * value / 1.125 for value in (2.0, 1.0, 1.0, 0.5)])
