"""Digits drawn from fonts: exactly labelled, as many as wanted, like the paper's SYN domain.

The fonts are the ones matplotlib installs, so nothing is downloaded. Training and test pictures
come from different typefaces: a model that knows the shapes of one set of glyphs by heart does not
do well on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedpw_flwr.lab.data.images import ImageSet

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
"""Slab serif, bold, typewriter and cursive faces, none of them in the training pictures."""

# Drawn several times too large and then reduced, so that strokes have soft edges as in photographs.
_OVERSAMPLING = 4
_CONTRAST = 90


_DATA_SEED = 20252


@dataclass(frozen=True)
class RenderedDigits:
    """A domain of drawn digits: the same pictures in every run.

    Parameters
    ----------
    train, test : int
        Number of training and of test pictures, at least 1 each.

    Raises
    ------
    ValueError
        If a number is less than 1.
    """

    train: int
    test: int

    def __post_init__(self) -> None:
        for name, count in (("syn_train", self.train), ("syn_test", self.test)):
            if count < 1:
                raise ValueError(f"dataset.{name} must be at least 1 picture, got {count}")

    def files(self) -> list[Path]:
        """Return the files of the fonts."""
        return _font_files((*TRAINING_FONTS, *TEST_FONTS))

    def read(
        self, *, image_size: int, channels: int, num_classes: int
    ) -> tuple[ImageSet, ImageSet]:
        """Draw training and test pictures, from different typefaces.

        Raises
        ------
        FileNotFoundError
            If the fonts are missing.
        ValueError
            If `channels` is not 3, or `num_classes` is less than 10.
        """
        if channels != 3 or num_classes < 10:
            raise ValueError(
                "drawn digits have 3 channels and 10 classes, got dataset.channels="
                f"{channels} and dataset.num_classes={num_classes}"
            )
        return (
            rendered_digits(self.train, TRAINING_FONTS, image_size=image_size, seed=_DATA_SEED),
            rendered_digits(self.test, TEST_FONTS, image_size=image_size, seed=_DATA_SEED + 1),
        )


def rendered_digits(count: int, fonts: Sequence[str], *, image_size: int, seed: int) -> ImageSet:
    """Draw digits, each in a random font, size, place, rotation and pair of colours.

    Parameters
    ----------
    count : int
        Number of pictures; the ten classes occur equally often, up to one.
    fonts : sequence of str
        Names of matplotlib's bundled font files, without ``.ttf``. Fonts without digits are left
        out.
    image_size : int
        Height and width, in pixels.
    seed : int
        The same seed gives the same pictures.

    Returns
    -------
    ImageSet
        RGB pictures of shape (count, 3, image_size, image_size).

    Raises
    ------
    FileNotFoundError
        If none of `fonts` is installed and has digits.
    """
    random = np.random.default_rng(seed)
    files = _font_files(fonts)
    labels = random.permutation(np.arange(count) % 10)
    pictures = np.stack(
        [
            _draw(str(digit), files[random.integers(len(files))], image_size, random)
            for digit in labels
        ]
    )
    return ImageSet(
        torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(labels.astype(np.int64)),
    )


def _font_files(names: Sequence[str]) -> list[Path]:
    folder = _font_folder()
    files = [folder / f"{name}.ttf" for name in names]
    usable = [file for file in files if file.is_file() and _has_digits(file)]
    if not usable:
        raise FileNotFoundError(
            f"none of the fonts {list(names)} with digits is in {folder}: reinstall matplotlib"
        )
    return usable


def _font_folder() -> Path:
    # Found without importing matplotlib, which takes half a second.
    package = find_spec("matplotlib")
    folders = package.submodule_search_locations if package is not None else None
    folder = Path((folders or [""])[0], "mpl-data", "fonts", "ttf")
    if not folder.is_dir():
        import matplotlib

        folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return folder


def _has_digits(file: Path) -> bool:
    """Whether the ten digits differ: what a font lacks, it draws as one and the same box."""
    from PIL import ImageFont

    font = ImageFont.truetype(str(file), 32)
    return len({bytes(font.getmask(digit)) for digit in "0123456789"}) == 10


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
