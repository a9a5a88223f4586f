"""Digits drawn from fonts: exactly labelled, as many as wanted, like the paper's SYN domain.

The fonts are the ones matplotlib installs, so nothing is downloaded. Training and test images come
from different typefaces: a model that knows the shapes of one set of glyphs by heart does not do
well on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedpw_flwr.lab.data.examples import ImageFormat, ImageSet

TRAINING_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "STIXGeneral",
    "STIXGeneralItalic",
    "STIXGeneralBol",
    "cmr10",
    "cmss10",
)
"""Sans-serif, monospaced and Times-like faces."""
TEST_FONTS = (
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "cmb10",
    "cmtt10",
    "cmti10",
)
"""Slab serif, bold, typewriter and cursive faces, none of them in the training images."""

# Drawn several times too large and then reduced, so that strokes have soft edges as in photographs.
_OVERSAMPLING = 4
_CONTRAST = 90


@dataclass(frozen=True)
class RenderedDigits:
    """A domain of so many drawn training and test images: the same ones in every run."""

    train: int
    test: int
    seed: int = 20252

    def files(self) -> list[Path]:
        """Return the files of the fonts."""
        return _font_files((*TRAINING_FONTS, *TEST_FONTS))

    def read(self, wanted: ImageFormat) -> tuple[ImageSet, ImageSet]:
        """Draw training and test images, from different typefaces."""
        if wanted.channels != 3 or wanted.num_classes < 10:
            raise ValueError(
                "drawn digits have 3 channels and 10 classes, got dataset.channels="
                f"{wanted.channels} and dataset.num_classes={wanted.num_classes}"
            )
        size = wanted.image_size
        return (
            rendered_digits(self.train, TRAINING_FONTS, image_size=size, seed=self.seed),
            rendered_digits(self.test, TEST_FONTS, image_size=size, seed=self.seed + 1),
        )


def rendered_digits(count: int, fonts: Sequence[str], *, image_size: int, seed: int) -> ImageSet:
    """Draw digits in RGB, each in a random font, size, position, rotation and pair of colours.

    The ten classes occur equally often, up to one. `fonts` are names of matplotlib's bundled files,
    without ``.ttf``.
    """
    random = np.random.default_rng(seed)
    files = _font_files(fonts)
    labels = random.permutation(np.arange(count) % 10)
    images = np.stack(
        [
            _draw(str(digit), files[random.integers(len(files))], image_size, random)
            for digit in labels
        ]
    )
    return ImageSet(
        torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(labels.astype(np.int64)),
    )


def _font_files(names: Sequence[str]) -> list[Path]:
    # Found without importing matplotlib, which takes half a second.
    folder = Path(str(distribution("matplotlib").locate_file("matplotlib/mpl-data/fonts/ttf")))
    files = [folder / f"{name}.ttf" for name in names]
    usable = [file for file in files if file.is_file()]
    if not usable:
        raise FileNotFoundError(
            f"none of the fonts {list(names)} is in {folder}: reinstall matplotlib"
        )
    return usable


def _draw(
    digit: str, font_file: Path, image_size: int, random: np.random.Generator
) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw, ImageFont

    side = image_size * _OVERSAMPLING
    font = ImageFont.truetype(str(font_file), round(side * random.uniform(0.75, 1.15)))
    centre = side / 2 + random.uniform(-0.1, 0.1, size=2) * side
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).text((centre[0], centre[1]), digit, fill=255, font=font, anchor="mm")
    mask = mask.rotate(random.uniform(-20, 20), resample=Image.Resampling.BILINEAR)
    mask = mask.resize((image_size, image_size), resample=Image.Resampling.BOX)
    coverage = np.asarray(mask, dtype=np.float64)[:, :, None] / 255
    paper, ink = _two_colours(random)
    noise = random.normal(0, 6, size=(image_size, image_size, 1))
    mixed = coverage * ink + (1 - coverage) * paper + noise
    return mixed.round().clip(0, 255).astype(np.uint8)


def _two_colours(random: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    while True:
        paper, ink = random.uniform(0, 255, size=(2, 3))
        if abs(paper.mean() - ink.mean()) > _CONTRAST:
            return paper, ink
