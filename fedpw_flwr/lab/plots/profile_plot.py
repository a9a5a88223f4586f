"""The plot of a profiled run: where the time of every round went.

Above, what the server saw, one phase after the other; below, what the workers did in the same
time, as shares, because there may be more or fewer of them. What is the same thing on both sides
has the same colour (Okabe-Ito, told apart by colour-blind people too).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpw_flwr.lab.plots.labels import panel_height, write_label
from fedpw_flwr.lab.plots.panels import new_page, set_round_axis
from fedpw_flwr.lab.runs.round_profile import MeanProfile, RoundProfile, share_in_words
from fedpw_flwr.wire.timings import IDLE

# What a phase is called, and its colour.
_Looks = Mapping[str, tuple[str, str]]

_SERVER_LOOKS: _Looks = {
    "configure": ("prepare messages", "#F0E442"),
    "send": ("send", "#56B4E9"),
    "clients": ("clients at work", "#0072B2"),
    "collect": ("collect replies", "#E69F00"),
    "aggregate": ("aggregate", "#CC79A7"),
    "client_evaluation": ("clients evaluate", "#7A3B69"),
    "evaluate": ("evaluate", "#009E73"),
    "other": ("rest", "#4D4D4D"),
}
_CLIENT_LOOKS: _Looks = {
    "set_up": ("set up", "#F0E442"),
    "download": ("download", "#56B4E9"),
    "train": ("train", "#0072B2"),
    "adjust": ("adjust", "#D55E00"),
    "evaluate": ("evaluate", "#7A3B69"),
    "upload": ("upload", "#E69F00"),
    IDLE: ("idle", "#DEDEDE"),
}
_CUT = 1.5  # times the longest other round: a first round above that is cut off


def profile_figure(profiles: Mapping[int, RoundProfile]) -> Figure:
    """Draw where the time of at least one round went, by the number of the round, in order.

    Figures at the right are their mean, without the first round where there are others.
    """
    mean = MeanProfile.of_rounds(profiles)
    rounds = list(profiles)
    first, *others = (profile.seconds for profile in profiles.values())
    usual = max(others, default=first)
    cut = first > _CUT * usual
    said = f"Figures: {mean.which}, {_short(mean.seconds)} a round."
    if cut:
        said += f" Round {rounds[0]}, in which workers start, took {_short(first)} (cut)."
    worked = any(mean.workers.values())
    height = panel_height(len(_SERVER_LOOKS), least=2.3)
    title = "Where the time of a round goes"
    figure, (upper, *lower) = new_page(title, said, [height, height] if worked else [height])

    server = pd.DataFrame([profile.server for profile in profiles.values()], rounds)
    _draw_layers(upper, server, mean.server, _SERVER_LOOKS)
    top = 1.08 * (usual if cut else max(first, usual))
    upper.set(ylim=(0, top), ylabel="seconds", title="On the server, one after the other")
    if cut:
        edges = [rounds[0] - 0.5, rounds[0] + 0.5]
        upper.plot(edges, [0.93 * top, 0.96 * top], color="white", linewidth=4)

    if worked:
        (axes,) = lower
        workers = pd.DataFrame([profile.workers for profile in profiles.values()], rounds)
        shares = 100 * workers.div(workers.sum(axis=1), axis=0).fillna(0.0)
        _draw_layers(axes, shares, mean.workers, _CLIENT_LOOKS)
        who = "the worker" if mean.num_workers == 1 else f"the {mean.num_workers:.3g} workers"
        together = _short(math.fsum(mean.workers.values()))
        axes.set(ylim=(0, 100), ylabel="workers' time (%)")
        axes.set_title(f"In {who}, at the same time ({together} together)")
    return figure


def _draw_layers(
    axes: Axes, heights: pd.DataFrame, mean: Mapping[str, float], looks: _Looks
) -> None:
    """Draw a row of heights as a bar a round, with a layer a phase named beside the axes."""
    rounds = heights.index
    # Gaps between many bars would read as a grid, and so would seams between pixels.
    crowded = len(rounds) > 40
    width = 1.05 if crowded else 0.86
    bottoms = heights.cumsum(axis=1) - heights
    shown = [phase for phase in heights if mean[phase] > 0]
    pitch = 1 / len(_SERVER_LOOKS)
    lowest = (1 - len(shown) * pitch) / 2
    for index, phase in enumerate(shown):
        label, color = looks[phase]
        look: dict[str, Any] = {"color": color, "linewidth": 0, "antialiased": not crowded}
        axes.bar(rounds, heights[phase], width, bottoms[phase], **look)
        share = share_in_words(mean[phase] / math.fsum(mean.values()))
        text = f"{label}: {_short(mean[phase])}, {share}"
        write_label(axes, lowest + (index + 0.5) * pitch, text, color=color)
    set_round_axis(axes, rounds)
    axes.set_xlim(rounds[0] - 0.5, rounds[-1] + 0.5)


def _short(seconds: float) -> str:
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.{2 if seconds < 10 else 1 if seconds < 100 else 0}f} s"
