"""Made-up patients in files of the form of UCI Heart Disease."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HOSPITALS = {"cleveland": 90, "hungarian": 80, "switzerland": 50, "va": 60}


def write_hospitals(folder: Path) -> None:
    """Write four hospitals' files; whoever has much pain and ST depression tends to be sick.

    Switzerland has no cholesterol, and only Cleveland has `ca` and `thal` of all patients.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for name, count in HOSPITALS.items():
        lines = []
        for _ in range(count):
            pain, depression = random.integers(1, 5), random.gamma(1.0)
            sick = pain + depression + random.normal() > 3.7
            line = [
                *(random.integers(30, 76), random.integers(2), pain, random.integers(95, 190)),
                0 if name == "switzerland" else random.integers(130, 350),
                *(random.integers(2), random.integers(3), random.integers(80, 200)),
                *(random.integers(2), f"{depression:.1f}", random.integers(1, 4)),
                *(
                    (random.integers(4), random.choice([3, 6, 7]))
                    if name == "cleveland"
                    else ("?", "?")
                ),
                int(sick) * random.integers(1, 5),
            ]
            lines.append(",".join(map(str, line)))
        (folder / f"processed.{name}.data").write_text("\n".join(lines) + "\n")
