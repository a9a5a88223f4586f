"""Draw how fast the loss term finds weak clients, of which few take part in a round.

    python benchmarks/memory_in_rounds.py [--out examples/plots/memory.png]

1000 clients, 10 of them drawn a round. 200 have three times the others' loss, so that q, the loss
term, should give each of them three times the others' share. At round 1000 these become like the
others, and another 200 become weak. Meanwhile all losses fall tenfold in 300 rounds. Drawn is the
mean q of both groups, in units of the others', by the rule of the package, which counts time in
rounds, and by the one it had before, which counted in visits. A few seconds on one core; the same
seed draws the same plot.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fedpw_flwr.algorithm.memory import SignalState, update_signal
from fedpw_flwr.lab.plots.looks import FAINT, INK, PALETTE, Look
from fedpw_flwr.lab.plots.panels import draw_lines, new_page

REPOSITORY = Path(__file__).resolve().parents[1]
BETA = 0.3
CLIENTS, DRAWN, WEAK, RATIO = 1000, 10, 200, 3.0
ROUNDS, SWAP, FALL, EVERY = 3000, 1000, 300, 10

FloatArray = NDArray[np.float64]
Step = Callable[[Sequence[int], FloatArray, float], Mapping[int, float]]
"""Takes the participants, their shares E of the round and ℓ̄; returns every client's q."""


@dataclass
class SignalAsItWas:
    """The earlier rule: a client's momentum and share stood still while it was away.

    Attributes
    ----------
    memory : dict[int, tuple[float, float, float]]
        Share, momentum and its mass, by client.
    """

    memory: dict[int, tuple[float, float, float]]
    first_size: float | None = None

    def step(self, clients: Sequence[int], shares: FloatArray, size: float) -> Mapping[int, float]:
        """Move the participants by one round."""
        count = len(clients)
        self.first_size = self.first_size or size
        rate = min(1.0, BETA * size / self.first_size)
        known = [self.memory.get(client) for client in clients]
        back = [one for one in known if one is not None]
        # Momenta of different mass are brought to the mean one; a newcomer has the mean momentum.
        mass = sum(one[2] for one in back) / len(back) if back else 0.0
        mean = sum(one[1] * mass / one[2] for one in back) / len(back) if back else 0.0
        momentum = np.array([mean if one is None else one[1] * mass / one[2] for one in known])
        momentum = (1 - rate) * momentum + rate * count * shares
        mass = (1 - rate) * mass + rate
        share = np.array([1.0 if one is None else one[0] for one in known])
        brought = share.sum()
        moved = (share / brought if self.memory else np.zeros(count)) + momentum / count
        moved *= (brought if self.memory else count) / moved.sum()
        for client, one, delta in zip(clients, moved.tolist(), momentum.tolist(), strict=True):
            self.memory[client] = (one, delta, mass)
        return {client: one[0] for client, one in self.memory.items()}


class SignalAsItIs:
    """The rule of the package."""

    def __init__(self) -> None:
        self.state = SignalState()

    def step(self, clients: Sequence[int], shares: FloatArray, size: float) -> Mapping[int, float]:
        """Move the participants by one round."""
        first = not self.state.clients
        *_, self.state = update_signal(
            self.state, clients, torch.from_numpy(shares), size, BETA, first
        )
        return {client: one.share for client, one in self.state.clients.items()}


def relative_shares(step: Step, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Return mean q of those who are weak first and of those who are weak later, over the others'.

    Each of shape (ROUNDS / EVERY,); clients that were not drawn yet are not counted.
    """
    rng = np.random.default_rng(seed)
    groups = (range(WEAK), range(WEAK, 2 * WEAK), range(2 * WEAK, CLIENTS))
    losses = np.ones(CLIENTS)
    losses[groups[0]] = RATIO
    found: list[tuple[float, float]] = []
    for now in range(1, ROUNDS + 1):
        if now == SWAP + 1:
            losses[groups[0]], losses[groups[1]] = 1.0, RATIO
        ids = rng.choice(CLIENTS, DRAWN, replace=False)
        told = losses[ids] * max(0.1, 1 - 0.9 * (now - 1) / FALL)
        shares = step(ids.tolist(), told / told.sum(), float(told.mean()))
        if now % EVERY == 0:
            first, later, others = (
                float(np.mean([shares[one] for one in group if one in shares])) for group in groups
            )
            found.append((first / others, later / others))
    first_group, later_group = np.array(found).T
    return first_group, later_group


def draw(
    as_it_is: tuple[FloatArray, FloatArray], as_it_was: tuple[FloatArray, FloatArray], out: Path
) -> None:
    """Draw both rules' shares of both groups."""
    first, later = f"weak until {SWAP}", f"weak from {SWAP}"
    figure, (axes,) = new_page(
        "How fast q finds the weak clients",
        f"{CLIENTS} clients, {DRAWN} a round, {WEAK} of them weak; all losses fall tenfold in "
        f"{FALL} rounds.\nSolid: the memory counts rounds. Dashed: the earlier rule, which counted "
        "visits.",
        [2.95],
        labels=("round", "loss term q (others = 1)"),
    )
    axes.set_ylim(0.8, 3.4)
    for level in (1.0, RATIO):
        axes.axhline(level, color=INK, linestyle=(0, (1, 2)), linewidth=1.0, zorder=1)
    axes.axvline(SWAP, color=FAINT, linewidth=1.0, zorder=1)
    axes.text(40, RATIO + 0.06, "three times the others' loss", fontsize=9, color=INK)
    axes.text(SWAP + 40, RATIO + 0.24, "others become weak", fontsize=9, color=INK)
    names = [first, later, f"{first}, as it was", f"{later}, as it was"]
    styles = [("-", 2.4)] * 2 + [((0, (4.0, 1.5)), 1.6)] * 2
    looks = {
        name: Look(name, color, style, width=width)
        for name, color, (style, width) in zip(names, PALETTE[:2] * 2, styles, strict=True)
    }
    rounds = range(EVERY, ROUNDS + 1, EVERY)
    values = pd.DataFrame(dict(zip(names, (*as_it_is, *as_it_was), strict=True)), index=rounds)
    draw_lines(axes, values, looks, unit="", digits=2)
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "examples" / "plots" / "memory.png"
    )
    out: Path = parser.parse_args().out
    as_it_is = relative_shares(SignalAsItIs().step)
    as_it_was = relative_shares(SignalAsItWas({}).step)
    draw(as_it_is, as_it_was, out)
    for name, found in (("now", as_it_is), ("before", as_it_was)):
        for group, values in zip(("weak first", "weak later"), found, strict=True):
            swapped, last = values[SWAP // EVERY - 1], values[-1]
            print(f"{name}, {group}: {swapped:.2f} at round {SWAP}, {last:.2f} at round {ROUNDS}")


if __name__ == "__main__":
    main()
