"""Draw the figures of docs/method.md from a run: one a step of the method.

    python docs/figures/draw.py [RUN]

The run beside this file is that of `fedpw strategy=fedpw_server seed=0`. Any of FedPW will do that
all clients took part in: all of this is drawn from its `metrics.jsonl`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from fedpw_flwr.lab.plots.looks import INK, Look, give_looks
from fedpw_flwr.lab.plots.panels import STYLE, draw_lines, new_page
from fedpw_flwr.lab.runs.run_folder import RunFolder

FOLDER = Path(__file__).parent
RUN = FOLDER / "run"


@matplotlib.rc_context({**STYLE, "svg.fonttype": "path", "svg.hashsalt": "fedpw"})
def draw(run: Path, folder: Path) -> list[Path]:
    """Draw a run's figures into a folder, and return their files."""
    rounds = [record for record in RunFolder(run).read_rounds() if record.clients is not None]
    numbers = [record.round for record in rounds]
    clients = pd.concat(
        [pd.DataFrame(vars(record.clients)).assign(round=record.round) for record in rounds]
    )
    count = clients["id"].nunique()
    looks = {name: replace(look, width=2.4) for name, look in give_looks(clients["domain"]).items()}

    def by_client(column: str) -> pd.DataFrame:
        return clients.pivot(index="round", columns=["domain", "id"], values=column).astype(float)

    def of_clients(axes: Axes, figures: pd.DataFrame, unit: str, digits: int) -> None:
        """Draw a thin line a client, and a thick one a domain."""
        for (domain, _), line in figures.items():
            axes.plot(numbers, line, color=looks[domain].color, linewidth=0.9, alpha=0.7)
        means = figures.T.groupby(level="domain").mean().T
        draw_lines(axes, means[list(looks)], looks, unit=unit, digits=digits)

    def of_all(axes: Axes, name: str, figures: NDArray[np.float64], unit: str, digits: int) -> None:
        """Draw one thick line."""
        values = pd.DataFrame({name: figures}, numbers, dtype=np.float64)
        draw_lines(axes, values, {name: Look(name, INK, "-", width=2.4)}, unit=unit, digits=digits)

    shares = {column: count * by_client(column) for column in ("p", "q", "weight")}
    drawn = []
    for name, title, column in (
        ("direction", "Step 1: the direction term p", "p"),
        ("loss", "Step 2: the loss term q", "q"),
        ("weights", "Step 3: the weights", "weight"),
    ):
        heights = [2.3, 0.8] if name == "weights" else [2.3]
        figure, panels = new_page(title, "Thin: one client. Thick: a domain. 1: equal.", heights)
        of_clients(panels[0], shares[column], " ×", 2)
        panels[0].axhline(1.0, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        panels[0].set_ylabel("× equal share")
        if name == "weights":
            panels[1].set(ylim=(0, 100), ylabel="share (%)")
            loss = 100 * np.array([record.loss_term_share for record in rounds], dtype=np.float64)
            of_all(panels[1], "loss term", loss, " %", 0)
        drawn.append((name, figure))

    figure, panels = new_page("Step 4: what is masked", "Share of each update's entries.", [2.3])
    of_clients(panels[0], 100 * by_client("drop_rate"), " %", 0)
    panels[0].set_ylabel("drop rate (%)")
    drawn.append(("masks", figure))

    text = "f on the entries where the clients agree, mean over the trained arrays."
    figure, panels = new_page("Step 5: what is amplified", text, [1.6])
    amplification = np.array([record.amplification for record in rounds], dtype=np.float64)
    of_all(panels[0], "amplification", amplification, "", 2)
    panels[0].set_ylabel("factor")
    drawn.append(("amplification", figure))

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in drawn:
        files.append(folder / f"{name}.svg")
        figure.savefig(files[-1], metadata={"Date": None})
    return files


def main() -> None:
    """Draw the figures of the run that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default=RUN, help="folder of a run")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    for file in draw(arguments.run, arguments.out):
        print(file)


if __name__ == "__main__":
    main()
