"""Figures over seeds, paired differences and rounds to a target agree with hand computations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fedpw_flwr.lab.compare.history import history_of
from fedpw_flwr.lab.compare.runs import FinishedRun
from fedpw_flwr.lab.compare.settings import Method, Setting
from fedpw_flwr.lab.compare.statistics import (
    Window,
    chance_accuracy,
    default_target,
    holm_corrected,
    near_chance,
    over_seeds,
    paired_differences,
    rounds_to_target,
    windows_of,
)
from fedpw_flwr.lab.compare.tables import (
    differences_table,
    figures_table,
    target_table,
)
from fedpw_flwr.lab.runs.records import RoundRecord, RunSummary
from fedpw_flwr.lab.runs.run_folder import RunFolder

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
            history=history_of(records),
            finished_at=0.0,
        )
    return Method(label, label, runs)


def setting(*methods: Method) -> Setting:
    return Setting("a setting", "a-setting", ("only",), methods)


def of_seeds(one: Method, window: Window = LAST) -> tuple[float, float]:
    """Mean and standard deviation of a method's mean accuracy over its seeds."""
    mean, std = over_seeds(window.of(setting(one).rounds_of_runs))
    return mean.loc[one.label, MEAN], std.loc[one.label, MEAN]


def difference(own: Method, other: Method) -> dict[str, float]:
    """The paired difference of two methods after the last round."""
    found = paired_differences(setting(own, other), other, [LAST], setting().domain_figures)
    (row,) = found.to_dict("records")
    return row


def reached(one: Method, target: float) -> dict[int, float]:
    """The first round at or above the target, by seed."""
    return rounds_to_target(setting(one), target).loc[one.label].to_dict()


def finals(label: str, *percents: float, classes: int | None = None) -> Method:
    return method(label, {seed: [10.0, value] for seed, value in enumerate(percents)}, classes)


# ---------------------------------------------------------------------------------- over seeds


def test_a_method_is_mean_and_standard_deviation_over_seeds() -> None:
    assert of_seeds(finals("fedpw", 70, 72, 74)) == pytest.approx((72, 2))


def test_one_seed_has_no_standard_deviation() -> None:
    assert of_seeds(finals("fedpw", 70)) == pytest.approx((70, math.nan), nan_ok=True)
    assert figures_table(setting(finals("fedpw", 70)), setting().domain_figures, LAST).rows == (
        ("fedpw", "1", "70.00"),
    )


def test_a_window_averages_the_last_rounds_of_each_run() -> None:
    mean, _ = of_seeds(method("fedpw", {0: [10, 50, 60, 70]}), Window(2))
    assert mean == pytest.approx(65)


def test_a_seed_whose_figure_is_unknown_makes_the_mean_unknown() -> None:
    assert all(map(math.isnan, of_seeds(finals("fedpw", 70, math.nan))))


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
    assert near_chance(both, LAST).to_dict() == {"lost": True, "learned": False}
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
    assert [near_chance(both, Window(last))["falls"] for last in (1, 3)] == [True, False]
    assert figures_table(both, both.domain_figures, Window(3)).rows[0][0] == "falls"


def test_chance_is_not_guessed_where_the_classes_are_not_known() -> None:
    unknown = setting(finals("a", 1.0))
    assert math.isnan(chance_accuracy(unknown))
    assert not near_chance(unknown, LAST)["a"]


def test_a_method_near_chance_sets_no_target() -> None:
    lost = finals("lost", 12, classes=10)
    learned = finals("learned", 60, classes=10)
    target, by = default_target(setting(lost), lost, LAST)
    assert math.isnan(target)
    assert by is None
    assert default_target(setting(lost, learned), lost, LAST) == (pytest.approx(57), "learned")


# ---------------------------------------------------------------------------------- differences


def test_the_paired_t_test_agrees_with_a_hand_computation() -> None:
    found = difference(finals("fedpw", 71, 82, 93), finals("fedavg", 70, 80, 90))
    # Differences 1, 2, 3: t = 2 / (1 / √3) with 2 degrees of freedom, where p = 1 - t / √(2 + t²).
    t = 2 * math.sqrt(3)
    assert found["seeds"] == 3
    assert (found["difference"], found["difference.sd"]) == pytest.approx((2, 1))
    assert found["p_t"] == pytest.approx(1 - t / math.sqrt(2 + t**2))


def test_only_common_seeds_are_compared() -> None:
    first = method("fedpw", {0: [70], 1: [72], 5: [99]})
    second = method("fedavg", {1: [70], 0: [69], 7: [1]})
    found = difference(first, second)
    assert found["seeds"] == 2
    assert found["difference"] == pytest.approx(1.5)


def test_there_is_no_p_value_from_fewer_than_two_seeds() -> None:
    one = difference(finals("fedpw", 71), finals("fedavg", 70))
    assert one["difference"] == pytest.approx(1)
    assert math.isnan(one["p_t"])
    none = difference(method("a", {0: [1]}), method("b", {1: [1]}))
    assert none["seeds"] == 0
    assert math.isnan(none["difference"])
    assert math.isnan(none["p_t"])


def test_differences_that_do_not_vary_have_no_p_value() -> None:
    found = difference(finals("a", 71, 72, 73), finals("b", 70, 71, 72))
    assert found["difference.sd"] == pytest.approx(0, abs=1e-9)
    assert math.isnan(found["p_t"])


def test_wilcoxon_is_computed_from_six_seeds_on() -> None:
    own, other = (71, 72, 73, 74, 75, 76), (70,) * 6
    six = difference(finals("a", *own), finals("b", *other))
    # All six of different size and of one sign: the two most extreme of 2⁶ orders of signs.
    assert six["p_wilcoxon"] == pytest.approx(2 / 2**6)
    five = difference(finals("a", *own[:5]), finals("b", *other[:5]))
    assert math.isnan(five["p_wilcoxon"])


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


def test_a_target_is_reached_by_the_first_round_at_or_above_it() -> None:
    rising = method("rising", {0: [10, 50, 75, 50]})
    assert reached(rising, 50.0) == {0: 1}
    assert reached(rising, 75.0) == {0: 2}
    assert math.isnan(reached(rising, 75.1)[0])


def test_the_initial_model_reaches_no_target() -> None:
    assert reached(method("a", {0: [50, 50, 50]}), 40.0) == {0: 1}


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


def test_the_default_target_is_95_percent_of_the_reference_s_mean() -> None:
    low, high = finals("a", 60, 70), finals("b", 80, 90)
    both = setting(low, high)
    assert default_target(both, low, LAST) == (pytest.approx(0.95 * 65), "a")
    assert default_target(both, high, LAST) == (pytest.approx(0.95 * 85), "b")
    # Of round 1 alone: the initial model is no result.
    assert default_target(both, high, Window(5)) == (pytest.approx(0.95 * 85), "b")


def test_without_a_reference_the_best_method_sets_the_target() -> None:
    low, high = finals("a", 60, 70), finals("b", 80, 90)
    assert default_target(setting(low, high), None, LAST) == (pytest.approx(0.95 * 85), "b")
    nowhere = finals("a", math.nan)
    target, by = default_target(setting(nowhere), nowhere, LAST)
    assert math.isnan(target)
    assert by is None
