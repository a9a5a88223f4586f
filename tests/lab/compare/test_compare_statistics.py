"""Figures over seeds, paired differences and rounds to a target agree with hand computations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from support.made_runs import made_run

from fedpw_flwr.lab.compare.settings import Method, Setting
from fedpw_flwr.lab.compare.statistics import (
    LAST_ROUND,
    Window,
    default_target,
    holm_corrected,
    near_chance,
    over_seeds,
    paired_differences,
    rounds_to_target,
    windows_of,
)
from fedpw_flwr.lab.compare.tables import differences_table, figures_table, target_table
from fedpw_flwr.lab.runs.records import RoundRecord

DIVIDED = {"seed": None, "test_share": 1 / 3}
LAST = LAST_ROUND
MEAN = "domains.mean"


def method(
    label: str,
    percents: Mapping[int, Sequence[float | None]],
    classes: int | None = None,
    **dataset: float | None,
) -> Method:
    """A method whose runs had these accuracies (%) on one test set in rounds 0, 1, 2, ...

    None is a round that was not tested.
    """
    known = {} if classes is None else {"num_classes": classes}
    configuration = {"dataset": {**known, **dataset}}
    runs = {}
    for seed, accuracies in percents.items():
        records = [
            RoundRecord(number, 1.0, {} if percent is None else {"only": percent / 100}, {})
            for number, percent in enumerate(accuracies)
        ]
        runs[seed] = made_run(records, configuration, strategy=label, seed=seed)
    return Method(label, label, runs)


def setting(*methods: Method) -> Setting:
    return Setting("a setting", "a-setting", ("only",), methods)


def of_seeds(one: Method, window: Window = LAST) -> tuple[float, float]:
    """Mean and standard deviation of a method's mean accuracy over its seeds."""
    mean, std = over_seeds(window.of(setting(one)))
    return mean.loc[one.label, MEAN], std.loc[one.label, MEAN]


def difference(own: Method, other: Method) -> dict[str, float]:
    """The paired difference of two methods after the last round."""
    found = paired_differences(setting(own, other), other, [LAST])
    rows: list[dict[str, float]] = found.to_dict("records")
    (row,) = rows
    return row


def reached(one: Method, target: float) -> dict[int, float]:
    """The first round at or above the target, by seed."""
    by_seed: dict[int, float] = rounds_to_target(setting(one), target).loc[one.label].to_dict()
    return by_seed


def finals(label: str, *percents: float, classes: int | None = None) -> Method:
    return method(label, {seed: [10.0, value] for seed, value in enumerate(percents)}, classes)


def test_a_method_is_mean_and_standard_deviation_over_seeds() -> None:
    assert of_seeds(finals("fedpw", 70, 72, 74)) == pytest.approx((72, 2))
    # One seed has no standard deviation; a seed that is unknown makes both unknown.
    assert of_seeds(finals("fedpw", 70)) == pytest.approx((70, math.nan), nan_ok=True)
    assert all(map(math.isnan, of_seeds(finals("fedpw", 70, math.nan))))
    one = setting(finals("fedpw", 70))
    assert figures_table(one, one.domain_figures, LAST).rows == (("fedpw", "1", "70.00"),)


@pytest.mark.parametrize(
    ("accuracies", "last", "mean"),
    [
        *(([10, 50, 60, 70], last, mean) for last, mean in ((1, 70), (2, 65), (3, 60), (5, 60))),
        # One round that is unknown makes the mean unknown.
        ([10, math.nan, 70], 5, math.nan),
        ([10, math.nan, 70], 1, 70),
        # One that was not tested is passed over.
        ([10, 50, None, 60, None, 70], 2, 65),
        ([None, None, None], 2, math.nan),
    ],
)
def test_a_window_averages_the_last_trained_rounds_of_each_run(
    accuracies: list[float | None], last: int, mean: float
) -> None:
    found, _ = of_seeds(method("fedpw", {0: accuracies}), Window(last))
    assert found == pytest.approx(mean, nan_ok=True)


@pytest.mark.parametrize(
    ("finals_of_methods", "best"),
    [
        # Equal as shown is equal.
        ([[70.0], [72.001], [72.004]], {(1, 2), (2, 2)}),
        ([[60, 70], [70, 61]], {(1, 2)}),
        # A method alone, and methods that are all equal, are the best in nothing.
        ([[70.0]], set()),
        ([[60, 70], [70, 60]], set()),
    ],
)
def test_the_best_method_of_each_column_is_marked_ties_too(
    finals_of_methods: list[list[float]], best: set[tuple[int, int]]
) -> None:
    one = setting(*(finals(str(index), *own) for index, own in enumerate(finals_of_methods)))
    assert figures_table(one, one.domain_figures, LAST).best == best


def test_a_window_has_no_more_rounds_than_the_runs() -> None:
    short = setting(method("fedpw", {0: [10, 50, 60, 70]}))
    assert windows_of(short, 5) == (Window(1), Window(3))
    assert windows_of(short, 2) == (Window(1), Window(2))
    assert windows_of(setting(finals("fedpw", 70)), 5) == (Window(1),)


def test_a_method_near_chance_is_marked_and_is_the_best_in_nothing() -> None:
    lost, learned = finals("lost", 12, 14, classes=10), finals("learned", 15.1, 30, classes=10)
    both = setting(lost, learned)
    assert both.chance == pytest.approx(10)
    assert near_chance(both, LAST).to_dict() == {"lost": True, "learned": False}
    # A model that answers the same for every image is as bad for everyone: its STD is the lowest.
    (mean,) = both.domain_figures
    low_is_good = replace(mean, higher_is_better=False)
    table = figures_table(both, (mean, low_is_good), LAST)
    assert [row[0] for row in table.rows] == ["lost (near chance)", "learned"]
    assert table.best == {(1, 2), (1, 3)}
    assert differences_table(both, learned, LAST).rows[0][0] == "lost (near chance)"
    assert target_table(both, 11.0).best == {(1, 2)}


def test_each_table_judges_its_own_rounds() -> None:
    falls = method("falls", {0: [30, 30, 12]}, classes=10)
    both = setting(falls, finals("learned", 60, classes=10))
    assert [near_chance(both, Window(last))["falls"] for last in (1, 3)] == [True, False]
    assert figures_table(both, both.domain_figures, Window(3)).rows[0][0] == "falls"


def test_a_method_near_chance_sets_no_target() -> None:
    lost, learned = finals("lost", 12, classes=10), finals("learned", 60, classes=10)
    assert math.isnan(default_target(setting(lost), lost, LAST)[0])
    assert default_target(setting(lost, learned), lost, LAST)[0] == pytest.approx(57)
    # Where the classes are not known, chance is not guessed.
    unknown = setting(finals("a", 1.0))
    assert math.isnan(unknown.chance)
    assert not near_chance(unknown, LAST)["a"]


def test_the_paired_t_test_agrees_with_a_hand_computation() -> None:
    found = difference(finals("fedpw", 71, 82, 93), finals("fedavg", 70, 80, 90))
    # Differences 1, 2, 3: t = 2 / (1 / √3) with 2 degrees of freedom, where p = 1 - t / √(2 + t²).
    t = 2 * math.sqrt(3)
    assert found["seeds"] == 3
    assert (found["difference"], found["difference.sd"]) == pytest.approx((2, 1))
    assert found["p_t"] == pytest.approx(1 - t / math.sqrt(2 + t**2))
    # Of two degrees of freedom t is 4.3027 at 97.5 % and 1.0607 at 80 %.
    assert found["margin"] == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert found["detectable"] == pytest.approx((4.3027 + 1.0607) / math.sqrt(3), abs=1e-4)


def test_divisions_that_overlap_are_compared_by_the_corrected_resampled_t_test() -> None:
    own, other = (
        method(label, {seed: [each] for seed, each in enumerate(accuracies)}, **DIVIDED)
        for label, accuracies in (("fedpw", [71, 82, 93]), ("fedavg", [70, 80, 90]))
    )
    # Differences 1, 2, 3, and as many test examples as half of the training examples.
    t = 2 / math.sqrt(1 / 3 + 1 / 2)
    found = difference(own, other)
    assert found["p_t"] == pytest.approx(1 - t / math.sqrt(2 + t**2))
    assert "Nadeau and Bengio" in differences_table(setting(own, other), other, LAST).notes[0]


@pytest.mark.parametrize(
    ("own", "other", "seeds", "mean", "p"),
    [
        ({0: [70], 1: [72], 5: [99]}, {1: [70], 0: [69], 7: [1]}, 2, 1.5, True),
        ({0: [71]}, {0: [70]}, 1, 1, False),
        ({0: [1]}, {1: [1]}, 0, math.nan, False),
        # Differences that do not vary.
        ({0: [71], 1: [72], 2: [73]}, {0: [70], 1: [71], 2: [72]}, 3, 1, False),
    ],
)
def test_common_seeds_are_compared_and_a_p_value_takes_two_that_differ(
    own: dict[int, list[float]], other: dict[int, list[float]], seeds: int, mean: float, p: bool
) -> None:
    found = difference(method("a", own), method("b", other))
    assert found["seeds"] == seeds
    assert found["difference"] == pytest.approx(mean, nan_ok=True)
    assert math.isfinite(found["p_t"]) == p


def test_wilcoxon_is_computed_from_six_seeds_on() -> None:
    own, other = (71, 72, 73, 74, 75, 76), (70,) * 6
    six = difference(finals("a", *own), finals("b", *other))
    # All six of different size and of one sign: the two most extreme of 2⁶ orders of signs.
    assert six["p_wilcoxon"] == pytest.approx(2 / 2**6)
    five = difference(finals("a", *own[:5]), finals("b", *other[:5]))
    assert math.isnan(five["p_wilcoxon"])


def test_p_values_are_corrected_by_holm_s_procedure() -> None:
    # Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5 x 1; none may be below the one before.
    assert holm_corrected([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm_corrected([0.9, 0.8]) == [1.0, 1.0]
    assert holm_corrected([]) == []


def test_a_table_of_differences_says_seeds_and_what_stays_after_correction() -> None:
    reference = finals("fedavg", 70, 80, 90)
    # Differences 10, 10.1, 9.9 (p = 0.00003), and 1, 2, 3 (p = 0.074).
    others = (finals("a", 80, 90.1, 99.9), finals("b", 71, 82, 93))
    table = differences_table(setting(reference, *others), reference, LAST)
    assert table.rows[1] == ("b", "3", "+2.00 [-0.48, 4.48] (p = 0.074)")
    (note,) = table.notes
    assert "3 common seeds" in note
    assert "not corrected for the number of comparisons" in note
    assert "Of 2 in this table 1 is below 0.05, and 1 after Holm's correction." in note
    of_one_seed = setting(finals("fedavg", 70), finals("fedpw", 71))
    table = differences_table(of_one_seed, of_one_seed.methods[0], LAST)
    assert table.rows == (("fedpw", "1", "+1.00"),)
    assert table.notes[0].startswith("No p-values")


def test_a_target_is_reached_by_the_first_trained_round_at_or_above_it() -> None:
    assert reached(method("a", {0: [50, 50, 50]}), 40.0) == {0: 1}
    rising = method("rising", {0: [10, 50, 75, 50]})
    assert reached(rising, 50.0) == {0: 1}
    assert reached(rising, 75.0) == {0: 2}
    assert math.isnan(reached(rising, 75.1)[0])


def test_seeds_that_never_reach_the_target_are_counted_and_have_no_mean() -> None:
    slow = method("slow", {0: [10, 60, 80], 1: [10, 60, 79.9]})
    quick = method("quick", {0: [10, 80, 70], 1: [10, 79, 81]})
    assert reached(slow, 80.0) == pytest.approx({0: 2, 1: math.nan}, nan_ok=True)
    assert reached(quick, 80.0) == {0: 1, 1: 2}
    table = target_table(setting(quick, slow), 80.0)
    assert table.rows == (
        ("quick", "2 of 2", "1.5 ± 0.7", "1, 2"),
        ("slow", "1 of 2", "–", "2, not reached"),
    )
    assert table.best == {(0, 2)}


def test_the_default_target_is_95_percent_of_the_reference_s_mean_or_of_the_best_one_s() -> None:
    low, high = finals("a", 60, 70), finals("b", 80, 90)
    both = setting(low, high)
    assert default_target(both, low, LAST)[0] == pytest.approx(0.95 * 65)
    # Of round 1 alone: the initial model is no result.
    assert default_target(both, high, Window(5))[0] == pytest.approx(0.95 * 85)
    target, note = default_target(both, None, LAST)
    assert target == pytest.approx(0.95 * 85)
    assert note == "95 % of b's mean accuracy, last round."
    nowhere = finals("a", math.nan)
    assert math.isnan(default_target(setting(nowhere), nowhere, LAST)[0])
