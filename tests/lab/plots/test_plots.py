"""The plots are drawn, readable and complete for every shape a run can have."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.image import imread
from support.shown_texts import assert_legible, shown_texts

from fedpw_flwr import lab
from fedpw_flwr.lab.plots.labels import spread_out
from fedpw_flwr.lab.plots.looks import PALETTE
from fedpw_flwr.lab.plots.partition_plot import partition_figure
from fedpw_flwr.lab.plots.run_plots import draw_plots, write_plots
from fedpw_flwr.lab.runs.holdings import ClientHolding, Holdings
from fedpw_flwr.lab.runs.records import ClientFigures, RoundRecord
from fedpw_flwr.lab.runs.round_profile import MeanProfile, MessageTimes, RoundProfile
from fedpw_flwr.lab.runs.run_folder import RunFolder, RunFolderError
from fedpw_flwr.wire.timings import CLIENT_PHASES


def synthetic_run(
    domains: int = 4,
    clients_per_domain: int = 2,
    rounds: int = 12,
    participants: int | None = None,
    fedavg: bool = False,
    name: str = "domain",
) -> list[RoundRecord]:
    """Rounds of the shape a run has: directions spread early, losses of the weak domains late."""
    draw = np.random.default_rng(0)
    names = [f"{name} {number}" for number in range(domains)]
    skill = np.linspace(1.0, 0.4, domains)
    homes = np.repeat(np.arange(domains), clients_per_domain)
    records = [RoundRecord(0, 0.4, dict.fromkeys(names, 0.1), dict.fromkeys(names, math.log(10)))]
    for number in range(1, rounds + 1):
        progress = number / rounds
        who = np.sort(draw.choice(len(homes), participants or len(homes), replace=False))
        strength = skill[homes[who]]
        p = strength ** (2 * (1 - progress)) * draw.uniform(0.9, 1.1, len(who))
        q = strength ** (-1.5 * progress)
        weight = np.ones(len(who)) if fedavg else p * (1 - progress) + q * progress
        accuracy = 0.1 + 0.85 * skill * (1 - math.exp(-4 * progress))
        accuracy = (accuracy + draw.normal(0, 0.01, domains)).clip(0, 1)
        shares = [(values / values.sum()).tolist() for values in (weight, p, q)]
        domain = [names[home] for home in homes[who]]
        figures = ClientFigures(who.tolist(), domain, *shares[: 1 if fedavg else 3])
        found = dict(zip(names, accuracy.tolist(), strict=True))
        record = RoundRecord(number, 1.5, found, dict.fromkeys(names, 1.0), clients=figures)
        records.append(replace(record, loss_term_share=None if fedavg else 0.6 * progress))
    return records


def profiled_run(
    rounds: int = 12,
    clients: int = 8,
    workers: int = 2,
    start_up: float = 15.0,
    evaluating: bool = False,
) -> list[RoundRecord]:
    """Rounds with a profile: workers start in the first, and the server works a third of each."""
    draw = np.random.default_rng(1)
    initial, *trained = synthetic_run(rounds=rounds)
    records = [initial]
    for record in trained:
        first = record.round == 1
        train = draw.uniform(0.3, 0.5, clients)
        parts = {"train": 1.0, "adjust": 0.05, "download": 0.01, "upload": 0.02, "set_up": 1e-4}
        parts["evaluate"] = 0.1 * evaluating
        seconds = {phase: (parts[phase] * train).tolist() for phase in CLIENT_PHASES}
        server = {"configure": 0.01, "send": 0.3 * start_up * first + 0.02}
        server["clients"] = sum(map(sum, seconds.values())) / workers + start_up * first
        server |= {"collect": 0.05, "aggregate": 0.3 * draw.uniform(0.5, 2)}
        server |= {"client_evaluation": 0.4 * evaluating, "evaluate": 0.2, "other": 0.04}
        worker = [client % workers for client in range(clients)]
        times = MessageTimes(list(range(clients)), worker, [0.1] * clients, seconds)
        records.append(replace(record, profile=RoundProfile(server, times)))
    return records


def profiles_of(records: list[RoundRecord]) -> dict[int, RoundProfile]:
    return {record.round: record.profile for record in records if record.profile is not None}


SHAPES = {
    "the default": synthetic_run(),
    "only the initial model": synthetic_run()[:1],
    "one domain, one client, one round": synthetic_run(1, 1, 1),
    "twenty domains, a hundred clients": synthetic_run(20, 5, 30),
    "a hundred clients, ten a round": synthetic_run(4, 25, 60, participants=10),
    "long names": synthetic_run(7, 2, 5, name="a hospital with a $very$ long name indeed, number"),
    "fedavg": synthetic_run(fedavg=True),
    "profiled": profiled_run(),
    "profiled, everything measured, long": profiled_run(60, 40, 16, 900.0, evaluating=True),
    "profiled, no client told": profiled_run(clients=0),
}


@pytest.mark.parametrize("records", SHAPES.values(), ids=SHAPES.keys())
def test_no_text_overlaps_or_leaves_the_plot(records: list[RoundRecord]) -> None:
    for name, figure in draw_plots(records).items():
        assert_legible(figure, name)


def test_every_domain_is_labelled_with_its_last_value() -> None:
    records = synthetic_run()
    said = [text for text, _ in shown_texts(draw_plots(records)["accuracy.png"])]
    for domain, accuracy in records[-1].accuracy.items():
        assert f"{domain}: {100 * accuracy:.1f} %" in said
    spread = records[-1].spread
    assert f"mean of domains: {100 * spread.mean:.1f} %" in said
    assert f"worst domain: {100 * spread.worst:.1f} %" in said


def test_every_client_has_a_line_in_its_domain_s_colour() -> None:
    (axes,) = draw_plots(synthetic_run(4, 3))["weights.png"].axes
    thin = [line for line in axes.lines if line.get_linewidth() < 1 and len(line.get_xdata()) == 12]
    colors = [to_hex(line.get_color()).upper() for line in thin]
    assert colors == [color for color in PALETTE[:4] for _ in range(3)]


@pytest.mark.parametrize("participants", [5, 20])
def test_equal_weights_lie_on_the_reference_line_however_many_clients_take_part(
    participants: int,
) -> None:
    records = synthetic_run(4, 5, participants=participants, fedavg=True)
    (axes,) = draw_plots(records)["weights.png"].axes
    assert {text.get_text()[-6:] for text in axes.texts} == {"1.00 ×"}


def test_an_absent_client_counts_as_last_seen() -> None:
    def with_weights(number: int, clients: list[int], weights: list[float]) -> RoundRecord:
        figures = ClientFigures(id=clients, domain=["scans"] * len(clients), weight=weights)
        return RoundRecord(number, 1.0, {"scans": 0.5}, {"scans": 1.0}, clients=figures)

    records = [with_weights(1, [0, 1], [0.75, 0.25]), with_weights(2, [1, 2], [0.25, 0.75])]
    (axes,) = draw_plots(records)["weights.png"].axes
    # Relative to equal weight: client 0 as last seen 1.5, client 1 now 0.5, client 2 now 1.5.
    assert [text.get_text() for text in axes.texts] == ["scans: 1.17 ×"]


def test_rounds_without_a_figure_are_drawn_without_it() -> None:
    records = synthetic_run(3, 2, 6, participants=4)
    records[3].accuracy["domain 0"] = math.nan
    records[4].accuracy.clear()
    figures = records[5].clients
    assert figures is not None
    figures.weight[0] = math.nan
    drawn = draw_plots(records)
    assert drawn.keys() == {"accuracy.png", "weights.png", "signals.png"}
    # Lines go on over the round that was not tested.
    assert drawn["accuracy.png"].axes[0].lines[0].get_xdata().tolist() == [0, 1, 2, 3, 5, 6]
    records[-1].accuracy["domain 0"] = math.nan
    last = draw_plots(records)["accuracy.png"]
    assert last.texts[1].get_text() == "After round 6: unknown"
    assert draw_plots(records[:1]).keys() == {"accuracy.png"}


@pytest.mark.parametrize(
    ("fedavg", "names"),
    [
        (False, ["accuracy.png", "weights.png", "signals.png"]),
        (True, ["accuracy.png", "weights.png"]),
    ],
)
def test_plots_are_written_whole_and_the_log_says_which_there_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fedavg: bool, names: list[str]
) -> None:
    folder = RunFolder(tmp_path)
    folder.start()
    with pytest.raises(RunFolderError, match="no round yet"):
        write_plots(folder)
    for record in synthetic_run(fedavg=fedavg, name="$cheap$ a_b^c {"):
        folder.append_round(record)
    with caplog.at_level(logging.INFO):
        paths = write_plots(folder)
    assert [path.name for path in paths] == names
    assert ("No signals.png" in caplog.text) == fedavg
    for path in paths:
        pixels = imread(path)
        assert pixels.shape[0] > 500
        assert pixels.shape[1] > 1000
        assert pixels.std() > 0.05
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".jsonl"}


def test_a_profile_names_every_phase_with_its_mean_and_share() -> None:
    records = profiled_run()
    said = [text for text, _ in shown_texts(draw_plots(records)["profile.png"])]
    mean = MeanProfile.of_rounds(profiles_of(records))
    train = mean.workers["train"]
    share = 100 * train / sum(mean.workers.values())
    assert f"train: {train:.2f} s, {share:.0f} %" in said
    aggregate = mean.server["aggregate"]
    share = 100 * aggregate / mean.seconds
    assert f"aggregate: {aggregate:.2f} s, {share:.0f} %" in said
    assert not any(text.startswith("clients evaluate") for text in said)


def test_layers_of_a_profile_reach_the_round_s_seconds_and_all_of_the_workers_time() -> None:
    records = profiled_run(rounds=5)
    upper, lower = draw_plots(records)["profile.png"].axes
    for axes, tops in (
        (upper, [profile.seconds for profile in profiles_of(records).values()]),
        (lower, [100.0] * 5),
    ):
        bars = [patch for layer in axes.containers for patch in layer]
        for number, top in enumerate(tops, start=1):
            stack = [bar for bar in bars if abs(bar.get_x() + bar.get_width() / 2 - number) < 0.1]
            assert max(bar.get_y() + bar.get_height() for bar in stack) == pytest.approx(top)


@pytest.mark.parametrize("cut", [True, False])
def test_only_a_first_round_much_longer_than_the_others_is_cut_and_named(cut: bool) -> None:
    records = profiled_run(start_up=900.0 if cut else 0.0)
    figure = draw_plots(records)["profile.png"]
    first, *others = [profile.seconds for profile in profiles_of(records).values()]
    top, said = figure.axes[0].get_ylim()[1], figure.texts[1].get_text()
    if cut:
        assert top < 1.2 * max(others)
        assert f"Round 1, in which workers start, took {first:.0f} s (cut)." in said
    else:
        assert top > max(first, *others)
        assert "cut" not in said


def test_a_profile_without_a_client_s_word_shows_the_server_alone() -> None:
    (axes,) = draw_plots(profiled_run(clients=0))["profile.png"].axes
    assert axes.get_ylabel() == "seconds"


def test_the_same_thing_has_the_same_colour_on_both_sides() -> None:
    upper, lower = draw_plots(profiled_run(evaluating=True))["profile.png"].axes

    def colors(axes: Axes) -> dict[str, str]:
        swatches = [line.get_color() for line in axes.lines if line.get_linewidth() == 7.0]
        phases = [text.get_text().partition(":")[0] for text in axes.texts]
        return dict(zip(phases, swatches, strict=True))

    for server, client in (
        ("send", "download"),
        ("clients at work", "train"),
        ("collect replies", "upload"),
        ("clients evaluate", "evaluate"),
    ):
        assert colors(upper)[server] == colors(lower)[client]


def test_every_cell_says_its_count_and_domains_stand_over_their_clients() -> None:
    ward, clinic = ClientHolding("$ward", [2, 0, 1], [9]), ClientHolding("clinic", [0, 3, 0], [0])
    figure = partition_figure(Holdings([ward, clinic]))
    said = [text for text, _ in shown_texts(figure)]
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["1", "2", "3"]
    assert {"$ward", "clinic"} <= set(said)
    assert any("2 clients train on 3 to 3 examples each, 6 in all" in text for text in said)


@pytest.mark.parametrize("domains", [1, 4, 20, 100])
def test_a_large_federation_is_legible_without_numbers(domains: int) -> None:
    names = [f"a hospital with a $long$ name {client * domains // 100}" for client in range(100)]
    figure = partition_figure(Holdings([ClientHolding(name, [5] * 10, [0] * 10) for name in names]))
    assert_legible(figure, "partition.png")
    assert not figure.axes[0].texts
    assert figure.get_size_inches()[0] < 16


def test_no_global_plotting_state_is_touched() -> None:
    sources = list(Path(lab.__path__[0]).rglob("plots/*.py"))
    assert len(sources) > 10
    assert [file.name for file in sources if "pyplot" in file.read_text(encoding="utf-8")] == []


@given(st.lists(st.floats(-0.2, 1.2), min_size=1, max_size=22))
def test_labels_keep_order_and_distance_and_stay_beside_the_axes(heights: list[float]) -> None:
    pitch = 1 / 22
    placed = spread_out(heights, pitch)
    order = np.argsort(heights, kind="stable")
    assert (np.diff(placed[order]) >= pitch - 1e-9).all()
    assert placed.min() >= -1e-9
    assert placed.max() <= 1 + 1e-9


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread_out([0.9, 0.1, 0.5], 0.1) == pytest.approx([0.9, 0.1, 0.5])
