"""Make demonstration data of three unequal sites out of scikit-learn's digits.

Usage: python make_data.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

TRAIN = {"site-1": 700, "site-2": 300, "site-3": 80}
TEST = 200
WEAK = "site-3"


def weak_camera(images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Show images (N, 1, 8, 8) as an old camera does: dark and noisy."""
    noise = rng.normal(scale=0.15, size=images.shape).astype(np.float32)
    return np.clip(images / 2 + noise, 0, 1)


def main(folder: Path) -> None:
    """Give each site its own images, in its own folder."""
    rng = np.random.default_rng(0)
    pixels, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    images = (pixels[order] / 16).reshape(-1, 1, 8, 8).astype(np.float32)
    labels = labels[order].astype(np.int64)
    start = 0
    for site, count in TRAIN.items():
        middle, end = start + count, start + count + TEST
        seen = images[start:end]
        if site == WEAK:
            seen = weak_camera(seen, rng)
        (folder / site).mkdir(parents=True, exist_ok=True)
        np.savez(
            folder / site / "data.npz",
            x_train=seen[:count],
            y_train=labels[start:middle],
            x_test=seen[count:],
            y_test=labels[middle:end],
        )
        start = end
        print(f"{folder / site}: {count} images to train on, {TEST} to test with")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
