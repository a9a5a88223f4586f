"""Pictures that explain a run at a look, made from nothing but its folder.

Use them after a run, or on an old one, to answer three questions:

* ``accuracy.png``: does the model serve every domain, and how far behind is the worst?
* ``weights.png``: whom does the server listen to more than to the others?
* ``signals.png``: why? Direction terms p and loss terms q, and which of the two leads: agreeing
  updates lead early, clients with high losses gain weight later.

``partition.png`` shows who holds what. A run that was profiled has one more, ``profile.png``: where
does the time go?

A domain keeps its colour (Okabe-Ito, told apart by colour-blind people too) in the first three.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpw_flwr.lab.plots.panels import (
    INK,
    PALETTE,
    FloatArray,
    Line,
    LineStyle,
    add_panel,
    label_ends,
    new_figure,
    panel_height,
    set_round_axis,
    write_label,
    write_title,
)
from fedpw_flwr.lab.plots.partition_plot import partition_figure
from fedpw_flwr.lab.plots.profile_plot import profile_figure
from fedpw_flwr.lab.runs.records import ClientFigures, RoundRecord
from fedpw_flwr.lab.runs.run_folder import RunFolder, RunFolderError, atomic_file

__all__ = ["draw_plots", "write_plots"]

logger = logging.getLogger(__name__)

LINE_STYLES: tuple[LineStyle, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
TIMES = "\N{MULTIPLICATION SIGN}"
DPI = 150
LONGEST_NAME = 24  # characters


@dataclass(frozen=True)
class _Clients:
    """Per-client figures of all trained rounds; NaN where a client took no part.

    ``weight``, ``p`` and ``q`` have shape (rounds, clients) and are relative to an equal share:
    1 is what every participant would have if all counted the same, so rounds with different
    numbers of participants can be compared.
    """

    rounds: FloatArray
    domains: list[str]
    counts: FloatArray
    weight: FloatArray
    p: FloatArray
    q: FloatArray
    loss_term_share: FloatArray

    def of_domain(self, figures: FloatArray, domain: str) -> FloatArray:
        """Average a domain's clients by the last figure each one had, shape (rounds,).

        An absent client's terms stand still; a mean over the participants alone would mostly
        show who happened to be drawn. NaN until the domain's first client takes part.
        """
        columns = figures[:, [name == domain for name in self.domains]]
        present = np.isfinite(columns)
        row = np.arange(len(columns))[:, np.newaxis]
        latest = np.maximum.accumulate(np.where(present, row, -1), axis=0)
        known = latest >= 0
        values = np.take_along_axis(columns, np.maximum(latest, 0), axis=0)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(known, values, 0.0).sum(axis=1) / known.sum(axis=1))


def write_plots(run_folder: RunFolder) -> list[Path]:
    """Draw the plots of a run into its folder.

    Parameters
    ----------
    run_folder : RunFolder
        A run with at least one recorded round; it need not be finished.

    Returns
    -------
    list[Path]
        The PNG files written. ``weights.png`` is left out where no round recorded its clients, and
        ``signals.png`` where no round recorded p and q (FedAvg has none); the log says so.
        ``profile.png`` is there where the run was profiled.

    Raises
    ------
    RunFolderError
        If the folder holds no run, or no round of it.
    """
    records = run_folder.read_rounds()
    if not records:
        raise RunFolderError(
            f"{run_folder.metrics_file} has no round yet: wait for the run's first one, or read "
            "the run's log for why there is none"
        )
    figures = draw_plots(records)
    holdings = run_folder.read_holdings()
    if holdings is not None and holdings.clients:
        figures["partition.png"] = partition_figure(holdings)
    for name, reason in (
        ("weights.png", "no round recorded its clients"),
        ("signals.png", "the strategy has no p and q"),
    ):
        if name not in figures:
            logger.info("No %s in %s: %s", name, run_folder.path, reason)
    paths = []
    for name, figure in figures.items():
        path = run_folder.path / name
        with atomic_file(path) as partial:
            figure.savefig(partial, format="png", dpi=DPI)
        paths.append(path)
    return paths


def draw_plots(records: Sequence[RoundRecord]) -> dict[str, Figure]:
    """Draw the plots of a run's rounds, of which there is at least one.

    Parameters
    ----------
    records : Sequence[RoundRecord]
        The rounds in order.

    Returns
    -------
    dict[str, Figure]
        Figures by file name; those that the rounds hold no data for are left out.
    """
    clients = _collect_clients(records)
    looks = _domain_looks(records, clients)
    figures = {"accuracy.png": _accuracy_figure(records, looks)}
    if clients is not None:
        figures["weights.png"] = _weights_figure(clients, looks)
        if np.isfinite(clients.p).any() and np.isfinite(clients.q).any():
            figures["signals.png"] = _signals_figure(clients, looks)
    profiles = {record.round: record.profile for record in records if record.profile is not None}
    if profiles:
        figures["profile.png"] = profile_figure(profiles)
    return figures


# --------------------------------------------------------------------------------- the figures


def _accuracy_figure(records: Sequence[RoundRecord], looks: dict[str, Line]) -> Figure:
    rounds = np.array([record.round for record in records], dtype=np.float64)
    spreads = [record.spread for record in records]
    lines = [
        replace(
            look,
            values=np.array([100 * record.accuracy.get(domain, math.nan) for record in records]),
        )
        for domain, look in looks.items()
        if any(domain in record.accuracy for record in records)
    ]
    if len(lines) > 1:
        worst = 100 * np.array([spread.worst for spread in spreads])
        mean = 100 * np.array([spread.mean for spread in spreads])
        lines.append(Line(worst, "worst domain", INK, (0, (1, 1.4)), 1.3))
        lines.append(Line(mean, "mean of domains", INK, "-", 2.6))
    panel = panel_height(len(lines), least=3.3)
    figure = new_figure(panel + 1.42, [line.label for line in lines])
    axes = add_panel(figure, bottom=0.62, height=panel)
    _draw(axes, rounds, lines, unit=" %", digits=1, limits=(0.0, 100.0))
    axes.set_ylabel("test accuracy (%)")
    axes.set_xlabel("round (0 is the initial model)" if rounds[0] == 0 else "round")
    last, last_domains = spreads[-1], records[-1].accuracy
    write_title(
        figure,
        "Accuracy per domain",
        f"After round {records[-1].round}: "
        + (
            f"mean {_percent(last.mean)}, STD {_points(last.std)}, worst {_percent(last.worst)}"
            if len(last_domains) > 1
            else _percent(last.mean)
        ),
    )
    return figure


def _weights_figure(clients: _Clients, looks: dict[str, Line]) -> Figure:
    panel = panel_height(len(looks), least=3.3)
    figure = new_figure(panel + 1.42, [look.label for look in looks.values()])
    axes = add_panel(figure, bottom=0.62, height=panel)
    _draw_clients(axes, clients, clients.weight, looks)
    axes.set_ylabel(f"aggregation weight ({TIMES} equal weight)")
    axes.set_xlabel("round")
    write_title(
        figure,
        "Aggregation weight of each client",
        f"{_legend(clients)}\n1 {TIMES} is an equal weight, {_equal_share(clients.counts)}.",
    )
    return figure


def _signals_figure(clients: _Clients, looks: dict[str, Line]) -> Figure:
    panel = panel_height(len(looks), least=2.5)
    strip_height, gap = 0.9, 0.5
    labels = [*(look.label for look in looks.values()), "direction p"]
    figure = new_figure(2 * panel + strip_height + 2 * gap + 1.68, labels)
    strip = add_panel(figure, bottom=0.62, height=strip_height)
    lower = add_panel(figure, bottom=0.62 + strip_height + gap, height=panel)
    upper = add_panel(figure, bottom=0.62 + strip_height + 2 * gap + panel, height=panel)
    limits = _shared_limits(clients.p, clients.q)
    for axes, figures, title in (
        (upper, clients.p, "Direction term p: whose updates agree with the others'"),
        (lower, clients.q, "Loss term q: whose data the model serves badly"),
    ):
        _draw_clients(axes, clients, figures, looks, limits)
        axes.set_ylabel(f"share ({TIMES} equal share)")
        axes.set_title(title, loc="left", fontsize=10.5, color=INK)
        axes.tick_params(labelbottom=False)
    _draw_lead(strip, clients)
    write_title(
        figure,
        "What decides the weights",
        f"{_legend(clients)}\n1 {TIMES} is an equal share, {_equal_share(clients.counts)}.",
    )
    return figure


# ----------------------------------------------------------------------------- parts of figures


def _draw_clients(
    axes: Axes,
    clients: _Clients,
    figures: FloatArray,
    looks: dict[str, Line],
    limits: tuple[float, float] | None = None,
) -> None:
    """Draw a thin line a client, and a thick, labelled one a domain."""
    crowd = len(clients.domains)
    everyone = bool((clients.counts == crowd).all())
    for column, domain in enumerate(clients.domains):
        present = np.isfinite(figures[:, column])
        # An absent client's terms stand still, so a line may pass over the rounds it missed.
        axes.plot(
            clients.rounds[present],
            figures[present, column],
            color=looks[domain].color,
            linewidth=0.9,
            alpha=(0.8 if crowd <= 12 else max(0.22, 9 / crowd)) * (1.0 if everyone else 0.7),
            marker="" if everyone and len(clients.rounds) > 1 else "o",
            markersize=2.8,
            markeredgewidth=0,
        )
    axes.axhline(1.0, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), zorder=4)
    lines = [
        replace(
            look,
            values=clients.of_domain(figures, domain),
            width=2.4,
        )
        for domain, look in looks.items()
        if domain in clients.domains
    ]
    _draw(
        axes,
        clients.rounds,
        lines,
        unit=f" {TIMES}",
        digits=2,
        limits=_shared_limits(figures) if limits is None else limits,
    )


def _draw_lead(axes: Axes, clients: _Clients) -> None:
    """Fill the strip that says which of the two terms leads, round by round."""
    loss = 100 * clients.loss_term_share
    dark, light = "#4D4D4D", "#D4D4D4"
    for bottom, size, color in ((np.zeros_like(loss), loss, dark), (loss, 100 - loss, light)):
        # Seams between neighbours would read as a grid, hence no antialiasing.
        axes.bar(
            clients.rounds,
            np.nan_to_num(size),
            bottom=np.nan_to_num(bottom),
            width=1.0,
            color=color,
            linewidth=0,
            antialiased=False,
        )
    axes.set_ylim(0, 100)
    set_round_axis(axes, clients.rounds)
    axes.set_yticks([0, 50, 100])
    axes.set_ylabel("lead (%)")
    axes.set_xlabel("round")
    axes.set_title("Which of the two leads the weights", loc="left", fontsize=10.5, color=INK)
    known = np.flatnonzero(np.isfinite(loss))
    last = float(loss[known[-1]]) if known.size else math.nan
    for height, text, share, color in (
        (0.75, "direction p", 100 - last, light),
        (0.25, "loss q", last, dark),
    ):
        line = Line(np.array([share]), text, color, width=7.0)
        write_label(axes, line, height, f"{text}: {share:.0f} %" if known.size else text)


def _draw(
    axes: Axes,
    rounds: FloatArray,
    lines: Sequence[Line],
    *,
    unit: str,
    digits: int,
    limits: tuple[float, float],
) -> None:
    """Draw labelled lines and put each one's name and last value at its end."""
    for line in lines:
        axes.plot(
            rounds,
            line.values,
            color=line.color,
            linestyle=line.style,
            linewidth=line.width,
            marker="o" if _has_lone_points(line.values) else "",
            markersize=2.2 * line.width,
            markeredgewidth=0,
            zorder=3,
        )
    axes.set_ylim(*limits)
    set_round_axis(axes, rounds)
    label_ends(axes, rounds, lines, unit, digits)


# ------------------------------------------------------------------------------------- the data


def _collect_clients(records: Sequence[RoundRecord]) -> _Clients | None:
    """Line the clients of all rounds up in columns; None where no round recorded any."""
    trained = [(record, record.clients) for record in records if record.clients is not None]
    domains: dict[int, str] = {}
    for _, figures in trained:
        domains.update(zip(figures.id, figures.domain, strict=True))
    if not domains:
        return None
    column = {client: index for index, client in enumerate(sorted(domains))}

    def table(figures: Iterable[tuple[ClientFigures, list[float] | None]]) -> FloatArray:
        rows = np.full((len(trained), len(column)), math.nan)
        for row, (who, values) in enumerate(figures):
            if values:
                rows[row, [column[client] for client in who.id]] = _relative_to_equal(values)
        return rows

    return _Clients(
        rounds=np.array([record.round for record, _ in trained], dtype=np.float64),
        domains=[domains[client] for client in sorted(domains)],
        counts=np.array([len(figures.id) for _, figures in trained], dtype=np.float64),
        weight=table((figures, figures.weight) for _, figures in trained),
        p=table((figures, figures.p) for _, figures in trained),
        q=table((figures, figures.q) for _, figures in trained),
        loss_term_share=np.array(
            [
                math.nan if record.loss_term_share is None else record.loss_term_share
                for record, _ in trained
            ]
        ),
    )


def _relative_to_equal(values: Sequence[float]) -> FloatArray:
    shares = np.asarray(values, dtype=np.float64)
    finite = shares[np.isfinite(shares)]
    total = finite.sum()
    if not finite.size or total == 0:
        return np.full(len(shares), math.nan)
    return np.asarray(shares * len(finite) / total)


def _domain_looks(records: Sequence[RoundRecord], clients: _Clients | None) -> dict[str, Line]:
    """Give each domain, in the order recorded, a colour and, past the palette, a line style."""
    names = dict.fromkeys(domain for record in records for domain in record.accuracy)
    if clients is not None:
        names.update(dict.fromkeys(clients.domains))
    return {
        name: Line(
            values=np.empty(0),
            label=_short(name),
            color=PALETTE[index % len(PALETTE)],
            style=LINE_STYLES[index // len(PALETTE) % len(LINE_STYLES)],
        )
        for index, name in enumerate(names)
    }


def _shared_limits(*tables: FloatArray) -> tuple[float, float]:
    """Limits that show equal weight and every figure, with some air."""
    shown = np.concatenate([table[np.isfinite(table)] for table in tables] + [np.array([1.0])])
    low, high = float(shown.min()), float(shown.max())
    air = max(0.05 * (high - low), 0.02)
    return (low - air if low < 0 else max(0.0, low - air)), high + air


def _has_lone_points(values: FloatArray) -> bool:
    """Tell whether a point has no neighbour to draw a line to, so that only a marker shows it."""
    present = np.concatenate(([False], np.isfinite(values), [False]))
    return bool((present[1:-1] & ~present[:-2] & ~present[2:]).any())


def _legend(clients: _Clients) -> str:
    if len(set(clients.domains)) == len(clients.domains):
        return "Each domain has one client."
    if (clients.counts == len(clients.domains)).all():
        return "Thin: one client. Thick: the mean of a domain's clients."
    return "Thin: one client, a dot a round. Thick: mean of a domain's clients, each as last seen."


def _equal_share(counts: FloatArray) -> str:
    least, most = int(counts.min()), int(counts.max())
    if least == most:
        return f"1/{most} of the round"
    return f"1/N of a round ({least} ≤ N ≤ {most} clients)"


def _short(name: str) -> str:
    """Shorten a long name in its middle: what tells names apart is often the end."""
    if len(name) <= LONGEST_NAME:
        return name
    end = LONGEST_NAME // 2
    return f"{name[: LONGEST_NAME - 1 - end]}…{name[-end:]}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "unknown"


def _points(share: float) -> str:
    return f"{100 * share:.1f} points" if math.isfinite(share) else "unknown"
