"""Figures over seeds, paired differences and rounds to a target agree with hand computations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fedpw_flwr.experiment.comparison.history import History
from fedpw_flwr.experiment.comparison.runs import FinishedRun
from fedpw_flwr.experiment.comparison.settings import Method, Setting
from fedpw_flwr.experiment.comparison.statistics import (
    Window,
    chance_accuracy,
    default_target,
    holm_corrected,
    near_chance,
    over_seeds,
    paired_difference,
    rounds_to_target,
    windows_of,
)
from fedpw_flwr.experiment.comparison.tables import (
    differences_table,
    figures_table,
    target_table,
)
from fedpw_flwr.experiment.records import RoundRecord, RunSummary
from fedpw_flwr.experiment.run_folder import RunFolder

LAST = Window(1)
MEAN = "domains.mean"


def method(
    label: str, percents: Mapping[int, Sequence[float]], classes: int | None = None
) -> Method:
    """A method whose runs had these accuracies (%) on one test set in rounds 0, 1, 2, ..."""
    runs = {}
    for seed, accuracies in percents.items():
        records = [
            RoundRecord(number, 1.0, {"only": percent / 100}, {"only": 1.0})
            for number, percent in enumerate(accuracies)
        ]
        runs[seed] = FinishedRun(
            folder=RunFolder(Path(f"/runs/{label}_{seed}")),
            configuration={} if classes is None else {"dataset": {"num_classes": classes}},
            summary=RunSummary.of_run(records, config_text="", strategy=label, seed=seed),
            history=History.of_rounds(records),
            finished_at=0.0,
        )
    return Method(label, label, runs)


def setting(*methods: Method) -> Setting:
    return Setting("a setting", "a-setting", ("only",), methods)


def finals(label: str, *percents: float, classes: int | None = None) -> Method:
    return method(label, {seed: [10.0, value] for seed, value in enumerate(percents)}, classes)


# ---------------------------------------------------------------------------------- over seeds


def test_a_method_is_mean_and_standard_deviation_over_seeds() -> None:
    value = over_seeds(finals("fedpw", 70, 72, 74), LAST, MEAN)
    assert value.mean == pytest.approx(72)
    assert value.std == pytest.approx(2)


def test_one_seed_has_no_standard_deviation() -> None:
    value = over_seeds(finals("fedpw", 70), LAST, MEAN)
    assert math.isnan(value.std)
    assert figures_table(setting(finals("fedpw", 70)), setting().domain_figures, LAST).rows == (
        ("fedpw", "1", "70.00"),
    )


def test_a_window_averages_the_last_rounds_of_each_run() -> None:
    value = over_seeds(method("fedpw", {0: [10, 50, 60, 70]}), Window(2), MEAN)
    assert value.mean == pytest.approx(65)


def test_a_seed_whose_figure_is_unknown_makes_the_mean_unknown() -> None:
    assert math.isnan(over_seeds(finals("fedpw", 70, math.nan), LAST, MEAN).mean)


def test_the_best_method_of_each_column_is_marked_ties_too() -> None:
    three = setting(finals("a", 70.0), finals("b", 72.001), finals("c", 72.004))
    assert figures_table(three, three.domain_figures, LAST).best == {(1, 2), (2, 2)}
    alone = setting(finals("a", 70.0))
    assert figures_table(alone, alone.domain_figures, LAST).best == frozenset()


def test_a_window_has_no_more_rounds_than_the_runs() -> None:
    short = setting(method("fedpw", {0: [10, 50, 60, 70]}))
    assert [window.label for window in windows_of(short, 5)] == [
        "last round",
        "mean of the last 3 rounds",
    ]
    assert windows_of(short, 2) == (Window(1), Window(2))
    assert windows_of(setting(finals("fedpw", 70)), 5) == (Window(1),)


# -------------------------------------------------------------------------------------- chance


def test_a_method_near_chance_is_marked_and_is_the_best_in_nothing() -> None:
    lost, learned = finals("lost", 12, 14, classes=10), finals("learned", 15.1, 30, classes=10)
    both = setting(lost, learned)
    assert chance_accuracy(both) == pytest.approx(10)
    assert [near_chance(both, one, LAST) for one in both.methods] == [True, False]
    # A model that answers the same for every picture is as bad for everyone: its STD is the lowest.
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
    assert [near_chance(both, falls, Window(last)) for last in (1, 3)] == [True, False]
    assert figures_table(both, both.domain_figures, Window(3)).rows[0][0] == "falls"


def test_chance_is_not_guessed_where_the_classes_are_not_known() -> None:
    unknown = setting(finals("a", 1.0))
    assert math.isnan(chance_accuracy(unknown))
    assert not near_chance(unknown, unknown.methods[0], LAST)


def test_a_method_near_chance_sets_no_target() -> None:
    lost = finals("lost", 12, classes=10)
    learned = finals("learned", 60, classes=10)
    target, by = default_target(setting(lost), lost, LAST)
    assert math.isnan(target)
    assert by is None
    assert default_target(setting(lost, learned), lost, LAST) == (pytest.approx(57), learned)


# ---------------------------------------------------------------------------------- differences


def test_the_paired_t_test_agrees_with_a_hand_computation() -> None:
    found = paired_difference(finals("fedpw", 71, 82, 93), finals("fedavg", 70, 80, 90), LAST, MEAN)
    # Differences 1, 2, 3: t = 2 / (1 / √3) with 2 degrees of freedom, where p = 1 - t / √(2 + t²).
    t = 2 * math.sqrt(3)
    assert found.seeds == (0, 1, 2)
    assert (found.mean, found.std) == (pytest.approx(2), pytest.approx(1))
    assert found.p_t == pytest.approx(1 - t / math.sqrt(2 + t**2))


def test_only_common_seeds_are_compared() -> None:
    first = method("fedpw", {0: [70], 1: [72], 5: [99]})
    second = method("fedavg", {1: [70], 0: [69], 7: [1]})
    found = paired_difference(first, second, LAST, MEAN)
    assert found.seeds == (0, 1)
    assert found.mean == pytest.approx(1.5)


def test_there_is_no_p_value_from_fewer_than_two_seeds() -> None:
    one = paired_difference(finals("fedpw", 71), finals("fedavg", 70), LAST, MEAN)
    assert one.mean == pytest.approx(1)
    assert math.isnan(one.p_t)
    none = paired_difference(method("a", {0: [1]}), method("b", {1: [1]}), LAST, MEAN)
    assert none.seeds == ()
    assert math.isnan(none.mean)
    assert math.isnan(none.p_t)


def test_differences_that_do_not_vary_have_no_p_value() -> None:
    found = paired_difference(finals("a", 71, 72, 73), finals("b", 70, 71, 72), LAST, MEAN)
    assert found.std == pytest.approx(0, abs=1e-9)
    assert math.isnan(found.p_t)


def test_wilcoxon_is_computed_from_six_seeds_on() -> None:
    own, other = (71, 72, 73, 74, 75, 76), (70,) * 6
    six = paired_difference(finals("a", *own), finals("b", *other), LAST, MEAN)
    # All six of different size and of one sign: the two most extreme of 2⁶ orders of signs.
    assert six.p_wilcoxon == pytest.approx(2 / 2**6)
    five = paired_difference(finals("a", *own[:5]), finals("b", *other[:5]), LAST, MEAN)
    assert math.isnan(five.p_wilcoxon)


def test_a_table_of_differences_says_seeds_and_that_p_is_not_corrected() -> None:
    reference = finals("fedavg", 70, 80, 90)
    table = differences_table(setting(reference, finals("fedpw", 71, 82, 93)), reference, LAST)
    assert table.rows == (("fedpw", "3", "+2.00 ± 1.00 (p = 0.074)"),)
    (note,) = table.notes
    assert "3 common seeds" in note
    assert "not corrected for the number of comparisons" in note
    assert "Of 1 in this table none is below 0.05, and none after Holm's correction." in note


def test_p_values_are_corrected_by_holm_s_procedure() -> None:
    # Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5 x 1; none may be below the one before.
    assert holm_corrected([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm_corrected([0.9, 0.8]) == [1.0, 1.0]
    assert holm_corrected([]) == []


def test_a_table_of_differences_counts_what_stays_after_correction() -> None:
    reference = finals("fedavg", 70, 80, 90)
    # Differences 10, 10.1, 9.9 (p = 0.00003), and 1, 2, 3 (p = 0.074).
    others = (finals("a", 80, 90.1, 99.9), finals("b", 71, 82, 93))
    (note,) = differences_table(setting(reference, *others), reference, LAST).notes
    assert "Of 2 in this table 1 is below 0.05, and 1 after Holm's correction." in note


def test_a_column_in_which_all_are_equal_has_no_best() -> None:
    level = setting(finals("a", 60, 70), finals("b", 70, 60))
    assert figures_table(level, level.domain_figures[:1], LAST).best == frozenset()
    apart = setting(finals("a", 60, 70), finals("b", 70, 61))
    assert figures_table(apart, apart.domain_figures[:1], LAST).best == {(1, 2)}


def test_a_table_of_differences_from_one_seed_has_no_p() -> None:
    reference = finals("fedavg", 70)
    table = differences_table(setting(reference, finals("fedpw", 71)), reference, LAST)
    assert table.rows == (("fedpw", "1", "+1.00"),)
    assert table.notes[0].startswith("No p-values")


# --------------------------------------------------------------------------------------- target


def test_seeds_that_never_reach_the_target_are_counted_and_have_no_mean() -> None:
    slow = method("slow", {0: [10, 60, 80], 1: [10, 60, 79.9]})
    quick = method("quick", {0: [10, 80, 70], 1: [10, 79, 81]})
    assert rounds_to_target(slow, 80.0).rounds == {0: 2, 1: None}
    assert math.isnan(rounds_to_target(slow, 80.0).mean)
    assert rounds_to_target(quick, 80.0).mean == pytest.approx(1.5)
    table = target_table(setting(quick, slow), 80.0)
    assert table.rows == (
        ("quick", "2 of 2", "1.5 ± 0.7", "1, 2"),
        ("slow", "1 of 2", "–", "2, not reached"),
    )
    assert table.best == {(0, 2)}


def test_the_default_target_is_95_percent_of_the_reference_s_mean() -> None:
    low, high = finals("a", 60, 70), finals("b", 80, 90)
    both = setting(low, high)
    assert default_target(both, low, LAST) == (pytest.approx(0.95 * 65), low)
    assert default_target(both, high, LAST) == (pytest.approx(0.95 * 85), high)
    # Of round 1 alone: the initial model is no result.
    assert default_target(both, high, Window(5)) == (pytest.approx(0.95 * 85), high)


def test_without_a_reference_the_best_method_sets_the_target() -> None:
    low, high = finals("a", 60, 70), finals("b", 80, 90)
    assert default_target(setting(low, high), None, LAST) == (pytest.approx(0.95 * 85), high)
    nowhere = finals("a", math.nan)
    target, by = default_target(setting(nowhere), nowhere, LAST)
    assert math.isnan(target)
    assert by is None
