"""Write three domains of handwritten digits, one .npz archive each: python make_data.py FOLDER.

The digits are scikit-learn's. `paper` has them as they were scanned; `china` and `flower` have them
inverted into pieces of scikit-learn's two photographs, |digit - photograph|, the recipe of MNIST-M.
No digit is in two domains.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_image

TEST = 199
SIZE = 16


def main(folder: Path) -> None:
    """Write paper.npz, china.npz and flower.npz."""
    rng = np.random.default_rng(0)
    values, labels = load_digits(return_X_y=True)
    digits = (values.reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)
    digits = digits.repeat(SIZE // 8, axis=1).repeat(SIZE // 8, axis=2)
    domains = np.array_split(rng.permutation(len(digits)), 3)

    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "paper.npz", digits[domains[0]], labels[domains[0]])
    for photograph, indices in zip(("china", "flower"), domains[1:], strict=True):
        pieces = cut(load_sample_image(f"{photograph}.jpg"), len(indices), rng)
        inverted = np.abs(digits[indices, :, :, None].astype(int) - pieces).astype(np.uint8)
        write(folder / f"{photograph}.npz", inverted, labels[indices])


def cut(photograph: NDArray[np.uint8], count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cut random pieces (count, SIZE, SIZE, 3) out of a photograph (H, W, 3)."""
    height, width, _ = photograph.shape
    tops, lefts = (rng.integers(0, end - SIZE, count) for end in (height, width))
    return np.stack(
        [
            photograph[top : top + SIZE, left : left + SIZE]
            for top, left in zip(tops, lefts, strict=True)
        ]
    )


def write(file: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Write an archive as fedpw_flwr.lab.data.archives reads it."""
    np.savez_compressed(
        file,
        x_train=images[TEST:],
        y_train=labels[TEST:],
        x_test=images[:TEST],
        y_test=labels[:TEST],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
