"""The plots of a comparison are complete and legible for every shape that one can have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from support.made_runs import made_run
from support.shown_texts import assert_legible

from fedpw_flwr.lab.compare.plots.curves import bands_over_seeds
from fedpw_flwr.lab.compare.plots.draw import draw_setting
from fedpw_flwr.lab.compare.plots.weights import weights_over_seeds
from fedpw_flwr.lab.compare.settings import Method, Setting
from fedpw_flwr.lab.compare.statistics import Window, default_target, over_seeds
from fedpw_flwr.lab.plots.looks import PALETTE, Look, method_looks
from fedpw_flwr.lab.runs.records import ClientFigures, RoundRecord

WINDOW = Window(5)
METHODS = (
    *("fedavg", "qfedavg", "fedpw", "afl", "term", "fedmgda", "fedheal", "fedprox"),
    *(f"fedpw, avg_drop_rate=0.3, beta={beta}" for beta in (0.1, 0.5, 0.9)),
    "a_method_whose_author_had_no_mercy_with_those_who_draw_it",
    "$cheap$ a_b^c {",
)


def synthetic_setting(
    methods: Sequence[str] = METHODS[:3],
    domains: int = 4,
    clients: int = 8,
    tested_clients: bool = False,
    rounds: int = 12,
    seeds: int = 3,
    participants: int | None = None,
    alike: bool = False,
    name: str = "domain",
    classes: int | None = None,
) -> Setting:
    """Methods that learn faster and more evenly the later they come."""
    names = [f"{name} {number}" for number in range(domains)]
    configuration = {} if classes is None else {"dataset": {"num_classes": classes}}
    made = []
    for index, label in enumerate(methods):
        rank = 0 if alike else index / max(1, len(methods) - 1)
        runs = {}
        for seed in range(seeds):
            draw = np.random.default_rng([index * (not alike), seed])
            skill = np.linspace(0.95, 0.4 + 0.3 * rank, domains)
            of_clients = np.clip(draw.normal(0.75, 0.2 - 0.1 * rank, clients), 0.05, 0.98)
            records = []
            for number in range(rounds + 1):
                learnt = 1 - math.exp(-(3 + 2 * rank) * number / rounds)
                accuracy = 0.1 + (skill - 0.1) * learnt + draw.normal(0, 0.01, domains)
                who = sorted(draw.choice(clients, participants or clients, replace=False).tolist())
                weight = draw.uniform(0.8, 1.2, len(who))
                tested = (0.1 + (of_clients - 0.1) * learnt).tolist() if tested_clients else None
                homes = [names[client * domains // clients] for client in who]
                trained = ClientFigures(who, homes, (weight / weight.sum()).tolist())
                found = dict(zip(names, accuracy.clip(0, 1).tolist(), strict=True))
                record = RoundRecord(number, 1.0, found, dict.fromkeys(names, 1.0), clients=trained)
                records.append(replace(record, client_accuracy=tested))
            records[0] = replace(records[0], clients=None)
            runs[seed] = made_run(records, configuration, strategy=label, seed=seed)
        made.append(Method(label, label, runs))
    return Setting(f"{domains} domains · {rounds} rounds", "slug", tuple(names), tuple(made))


LONG = "a hospital with a long name, number"
TESTED: dict[str, Any] = {"domains": 1, "clients": 20, "tested_clients": True}
MANY = {**TESTED, "clients": 100, "participants": 10, "rounds": 40}
NINE = {"domains": 9, "clients": 18, "tested_clients": True, "name": LONG}
ALL_NINE = "fairness fairness_domains curves curves_domains domains"

# Methods, what they are run on, and the plots beside those that everything has.
SHAPES: dict[str, tuple[Sequence[str], dict[str, Any], str]] = {
    "three methods, four domains": (METHODS[:3], {}, "fairness curves domains"),
    "six methods, one domain": (METHODS[:6], TESTED, "fairness curves curves_test_set"),
    "thirteen methods, four domains": (METHODS, {"rounds": 60}, "fairness curves domains"),
    "a hundred clients, ten a round": (METHODS, MANY, "fairness curves curves_test_set"),
    "long names of nine domains with client tests": (METHODS[6:], NINE, ALL_NINE),
    "methods that are alike": (METHODS, {"alike": True, "seeds": 1}, "fairness curves domains"),
    "one seed": (METHODS[:6], {"seeds": 1}, "fairness curves domains"),
    "one of each": (METHODS[:1], {"domains": 1, "clients": 1, "rounds": 1, "seeds": 1}, "curves"),
}


def looks_of(setting: Setting) -> dict[str, Look]:
    return method_looks([method.label for method in setting.methods])


def drawn(setting: Setting, target: float | None = None) -> dict[str, Figure]:
    if target is None:
        target, _ = default_target(setting, setting.reference(None), WINDOW)
    plots = draw_setting(setting, looks_of(setting), WINDOW, target)
    return {name: figure for name, (figure, _) in plots.items()}


@cache
def drawn_default() -> tuple[Setting, dict[str, Figure]]:
    setting = synthetic_setting()
    return setting, drawn(setting)


@pytest.mark.parametrize(("methods", "of", "names"), SHAPES.values(), ids=SHAPES.keys())
def test_each_setting_has_the_plots_it_has_figures_for_and_all_can_be_read(
    methods: Sequence[str], of: dict[str, Any], names: str
) -> None:
    figures = drawn(synthetic_setting(methods, **of))
    always = {"rounds_to_target.png", "weights.png"}
    assert figures.keys() == always | {f"{name}.png" for name in names.split()}
    for name, figure in figures.items():
        assert_legible(figure, name)


def test_fairness_shows_each_seed_and_the_mean_of_each_method() -> None:
    setting, figures = drawn_default()
    looks = looks_of(setting)
    (axes,) = figures["fairness.png"].axes
    runs = WINDOW.of(setting)[["domains.mean", "domains.std"]]
    means, _ = over_seeds(runs)
    for method in setting.methods:
        look = looks[method.label]
        marked = [line for line in axes.lines if line.get_marker() == look.marker]
        seeds, center, _ = marked
        np.testing.assert_allclose(seeds.get_xydata(), runs.loc[method.label])
        np.testing.assert_allclose(center.get_xydata(), means.loc[[method.label]])
        assert center.get_markersize() > seeds.get_markersize()
        said = [text.get_text() for text in axes.texts]
        mean, std = means.loc[method.label]
        assert f"{method.label}: {mean:.1f} %, STD {std:.1f}" in said


def test_fairness_says_which_method_is_near_chance() -> None:
    # In two classes guessing gets 50 %, and what is at most 75 % counts as near.
    base = synthetic_setting(METHODS[:2], classes=2)
    figure = drawn(base)["fairness.png"]
    said = {text.get_text() for axes in figure.axes for text in axes.texts}
    marked = {text.partition(":")[0] for text in said if text.endswith("(near chance)")}
    mean, _ = over_seeds(Window(1).of(base))
    low = set(mean.index[mean["domains.mean"] <= 75])
    assert marked == low
    assert len(low) == 1


def test_a_method_keeps_its_colour_in_every_plot() -> None:
    setting = synthetic_setting(METHODS[:6])
    looks, figures = looks_of(setting), drawn(setting)
    # Six methods share a panel a figure.
    assert len(figures["curves.png"].axes) == 2
    curve_colors = {
        to_hex(line.get_color()).upper() for line in figures["curves.png"].axes[0].lines
    }
    bars = [to_hex(bar.get_facecolor()).upper() for bar in figures["domains.png"].axes[0].patches]
    colors = [look.color.upper() for look in looks.values()]
    assert bars == colors
    assert set(colors) <= curve_colors


@pytest.mark.parametrize("methods", [15, 22])
def test_many_methods_differ_as_points_and_as_lines(methods: int) -> None:
    looks = method_looks([f"method {number}" for number in range(methods)]).values()
    assert len({(look.color, look.marker) for look in looks}) == methods
    assert len({(look.color, look.style) for look in looks}) == methods
    assert {look.color for look in looks} - set(PALETTE) == {"#222222"}


def test_bands_reach_from_the_lowest_to_the_highest_seed() -> None:
    setting = synthetic_setting()
    method = setting.methods[0]
    band = bands_over_seeds(setting, "domains.mean")[method.label]
    table = np.array([run.history["domains.mean"] for run in method.runs.values()])
    np.testing.assert_allclose(band["mean"], table.mean(axis=0))
    np.testing.assert_allclose(band["min"], table.min(axis=0))
    np.testing.assert_allclose(band["max"], table.max(axis=0))


def test_a_seed_that_never_reached_the_target_is_crossed_in_a_column_of_its_own() -> None:
    setting = synthetic_setting(METHODS[:2])
    (axes,) = drawn(setting, 99.0)["rounds_to_target.png"].axes
    crosses = [line.get_xdata() for line in axes.lines if line.get_marker() == "x"]
    assert [len(line) for line in crosses] == [3, 3]
    assert np.all(np.concatenate(crosses) > setting.rounds)
    assert [text.get_text() for text in axes.texts] == ["not reached", *["0 of 3 seeds"] * 2]
    assert len(axes.patches) == 1  # the column; no bar without a mean
    assert "rounds_to_target.png" not in drawn(setting, math.nan)


def test_bars_of_a_domain_are_its_mean_accuracies() -> None:
    setting, figures = drawn_default()
    figure = figures["domains.png"]
    mean, _ = over_seeds(WINDOW.of(setting))
    for axes, domain in zip(figure.axes, setting.domains, strict=True):
        widths = [bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)]
        np.testing.assert_allclose(widths, mean[f"accuracy.{domain}"])


def test_weights_are_averaged_over_the_seeds_in_which_a_domain_took_part() -> None:
    setting = synthetic_setting(METHODS[:1], 2, 4, participants=1, rounds=30)
    (method,) = setting.methods
    weights = weights_over_seeds(setting)[method.label]
    assert weights.index.tolist() == list(range(1, 31))
    # One participant has the whole weight, which is its equal share.
    assert set(weights.stack().dropna()) == {1.0}
    absent = np.all(
        [np.isnan(run.history["domain_weight.domain 0"][1:]) for run in method.runs.values()],
        axis=0,
    )
    assert absent.any()
    np.testing.assert_array_equal(np.isnan(weights["domain 0"]), absent)


def test_a_round_in_which_a_domain_took_part_alone_has_a_mark() -> None:
    setting = synthetic_setting(METHODS[:1], 2, 4, participants=1, rounds=30, seeds=1)
    figure = drawn(setting)["weights.png"]
    weights = weights_over_seeds(setting)["fedavg"]
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 30]
    for line, values in zip(lines, weights.to_numpy().T, strict=True):
        marked = set(line.get_markevery())
        known = {place for place, value in enumerate(values) if math.isfinite(value)}
        assert marked == {place for place in known if not {place - 1, place + 1} & known}
        assert marked


def test_more_than_six_methods_get_a_panel_each_with_the_reference_in_grey() -> None:
    setting = synthetic_setting(METHODS[:7])
    figure = drawn(setting)["curves.png"]
    assert [axes.get_title(loc="left").split(":")[0] for axes in figure.axes] == list(METHODS[:7])
    fedavg = setting.methods[0]
    means, worst = (bands_over_seeds(setting, f"domains.{name}") for name in ("mean", "worst"))
    for method, axes in zip(setting.methods, figure.axes, strict=True):
        grey = [line for line in axes.lines if to_hex(line.get_color()).upper() == "#8C8C8C"]
        assert len(grey) == (0 if method is fedavg else 2)
        own = worst[method.label]["mean"]
        assert axes.lines[-1].get_ydata() == pytest.approx(own.to_numpy())
        assert f"/ {own.iloc[-1]:.1f} %" in axes.get_title(loc="left")
        if grey:
            assert grey[0].get_ydata() == pytest.approx(means["fedavg"]["mean"].to_numpy())
