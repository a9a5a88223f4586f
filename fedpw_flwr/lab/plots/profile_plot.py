"""The picture of a profiled run: where the time of every round went.

Above, what the server saw, one phase after the other; below, what the workers did in the same
time, as shares, because there may be more or fewer of them. What is the same thing on both sides
has the same colour (Okabe-Ito, told apart by colour-blind people too).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpw_flwr.lab.plots.panels import (
    INK,
    LABEL_SIZE,
    FloatArray,
    Line,
    add_panel,
    new_figure,
    panel_height,
    set_round_axis,
    write_label,
    write_title,
)
from fedpw_flwr.lab.runs.round_profile import MeanProfile, RoundProfile
from fedpw_flwr.wire.timings import CLIENT_PHASES, IDLE, SERVER_PHASES

__all__ = ["profile_figure"]

_SERVER_LOOKS = {
    "configure": ("prepare messages", "#F0E442"),
    "send": ("send", "#56B4E9"),
    "clients": ("clients at work", "#0072B2"),
    "collect": ("collect replies", "#E69F00"),
    "aggregate": ("aggregate", "#CC79A7"),
    "client_evaluation": ("clients evaluate", "#7A3B69"),
    "evaluate": ("evaluate", "#009E73"),
    "other": ("rest", "#4D4D4D"),
}
_CLIENT_LOOKS = {
    "set_up": ("set up", "#F0E442"),
    "download": ("download", "#56B4E9"),
    "train": ("train", "#0072B2"),
    "adjust": ("adjust", "#D55E00"),
    "evaluate": ("evaluate", "#7A3B69"),
    "upload": ("upload", "#E69F00"),
    IDLE: ("idle", "#DEDEDE"),
}
_CUT = 1.5  # times the longest other round: a first round above that is cut off
_SWATCH = 7.0  # points


def profile_figure(profiles: Mapping[int, RoundProfile]) -> Figure:
    """Draw where the time of at least one round went.

    Parameters
    ----------
    profiles : Mapping[int, RoundProfile]
        Profiles by the number of the round. Figures at the right are their mean, without the first
        round where there are others.
    """
    mean = MeanProfile.of_rounds(profiles)
    rounds = np.array(sorted(profiles), dtype=np.float64)
    ordered = [profiles[number] for number in sorted(profiles)]
    server = [phase for phase in SERVER_PHASES if mean.server[phase] > 0]
    workers = [phase for phase in (*CLIENT_PHASES, IDLE) if mean.workers[phase] > 0]
    looks = [*_SERVER_LOOKS.values(), *_CLIENT_LOOKS.values()]
    panel = panel_height(len(_SERVER_LOOKS), least=2.3)
    height = 2 * panel + 2.1 if workers else panel + 1.5
    figure = new_figure(height, [f"{label}: 10.00 s" for label, _ in looks])

    upper = add_panel(figure, bottom=height - panel - 0.95, height=panel)
    seconds = [{phase: profile.server[phase] for phase in server} for profile in ordered]
    _draw_layers(upper, rounds, seconds, [_SERVER_LOOKS[phase][1] for phase in server])
    cut = _limit(upper, rounds[0], [profile.seconds for profile in ordered])
    upper.set_ylabel("seconds")
    _caption(upper, "On the server, one after the other")
    _label_layers(upper, mean.server, {phase: _SERVER_LOOKS[phase] for phase in server})

    if workers:
        lower = add_panel(figure, bottom=0.55, height=panel)
        shares = [_shares_of(profile.workers, workers) for profile in ordered]
        _draw_layers(lower, rounds, shares, [_CLIENT_LOOKS[phase][1] for phase in workers])
        lower.set_ylim(0, 100)
        lower.set_ylabel("workers' time (%)")
        together = _short(math.fsum(mean.workers.values()))
        _caption(lower, f"In {_workers(mean)}, at the same time ({together} together)")
        _label_layers(lower, mean.workers, {phase: _CLIENT_LOOKS[phase] for phase in workers})
        upper.tick_params(labelbottom=False)
    figure.axes[-1].set_xlabel("round")

    said = f"Figures: {mean.which}, {_short(mean.seconds)} a round."
    if cut:
        said += f" Round {sorted(profiles)[0]}, in which workers start, took {_short(cut)} (cut)."
    write_title(figure, "Where the time of a round goes", said)
    return figure


def _draw_layers(
    axes: Axes, rounds: FloatArray, heights: Sequence[Mapping[str, float]], colors: Sequence[str]
) -> None:
    """Draw a stacked bar a round, its first phase at the bottom."""
    bottom = np.zeros(len(rounds))
    crowded = len(rounds) > 40
    for phase, color in zip(heights[0], colors, strict=True):
        layer = np.array([bar[phase] for bar in heights])
        axes.bar(
            rounds,
            layer,
            bottom=bottom,
            # Gaps between many bars would read as a grid, and so would seams between pixels.
            width=1.05 if crowded else 0.86,
            color=color,
            linewidth=0,
            antialiased=not crowded,
        )
        bottom = bottom + layer
    set_round_axis(axes, rounds)
    axes.set_xlim(rounds[0] - 0.5, rounds[-1] + 0.5)


def _limit(axes: Axes, first_round: float, seconds: Sequence[float]) -> float | None:
    """Set the vertical limit; a much longer first round is cut off, and its seconds returned."""
    first, others = seconds[0], seconds[1:]
    usual = max(others, default=first)
    if usual <= 0:
        return None
    cut = first > _CUT * usual
    top = 1.08 * (usual if cut else max(first, usual))
    axes.set_ylim(0, top)
    if not cut:
        return None
    left, right = first_round - 0.5, first_round + 0.5
    axes.plot([left, right], [0.93 * top, 0.96 * top], color="white", linewidth=4)
    return first


def _label_layers(
    axes: Axes, seconds: Mapping[str, float], looks: Mapping[str, tuple[str, str]]
) -> None:
    """Name the layers beside the axes, in the order in which they lie, with mean and share."""
    total = math.fsum(seconds.values())
    pitch = 1 / len(_SERVER_LOOKS)
    lowest = (1 - len(looks) * pitch) / 2
    for place, (phase, (label, color)) in enumerate(looks.items()):
        text = f"{label}: {_short(seconds[phase])}, {_percent(seconds[phase] / total)}"
        swatch = Line(np.empty(0), label, color, width=_SWATCH)
        write_label(axes, swatch, lowest + (place + 0.5) * pitch, text)


def _caption(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=LABEL_SIZE + 1.5, color=INK)


def _shares_of(seconds: Mapping[str, float], phases: Sequence[str]) -> dict[str, float]:
    total = math.fsum(seconds.values())
    return {phase: 100 * seconds[phase] / total if total else 0.0 for phase in phases}


def _workers(mean: MeanProfile) -> str:
    return "the worker" if mean.num_workers == 1 else f"the {mean.num_workers:.3g} workers"


def _short(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:.0f} s"
    if seconds >= 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else "<1 %"
