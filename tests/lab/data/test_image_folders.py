"""Images as files, written and read by Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedpw_flwr.lab.data.examples import ImageFormat, ImageSet
from fedpw_flwr.lab.data.image_folders import ImageFolderSet

COLOURS = {"bike": (200, 10, 10), "mouse": (10, 200, 10), "mug": (10, 10, 200)}


def _write(folder: Path, count: int = 10, names: Sequence[str] = tuple(COLOURS)) -> Path:
    """Write `count` images a class, of its colour and told apart by their brightness."""
    for name, colour in zip(names, COLOURS.values(), strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (40, 30), tuple(min(255, value + number) for value in colour))
            image.save(folder / name / f"{number:03d}.png")
    return folder


def _read(folder: Path, test_share: float = 0.2, size: int = 8) -> tuple[ImageSet, ImageSet]:
    return ImageFolderSet(folder, test_share).read(ImageFormat(size, 3, len(COLOURS)))


def _numbered(images: ImageSet) -> list[tuple[int, int]]:
    """Tell images by class, after its colour, and by their number."""
    least = images.images.flatten(1).min(dim=1).values - 10
    strongest = images.images.float().mean(dim=(2, 3)).argmax(dim=1)
    assert torch.equal(strongest, images.labels)
    return list(zip(images.labels.tolist(), least.tolist(), strict=True))


def test_an_undivided_set_keeps_the_same_share_of_every_class_for_testing(tmp_path: Path) -> None:
    folder = _write(tmp_path)
    (train, test), (_, again) = _read(folder), _read(folder)
    assert test.labels.bincount().tolist() == [2, 2, 2]
    assert sorted(_numbered(train) + _numbered(test)) == list(product(range(3), range(10)))
    assert torch.equal(test.images, again.images)
    assert len(_read(folder, test_share=0.5)[1]) == 15


def test_folders_train_and_test_say_what_is_tested_on_in_order(tmp_path: Path) -> None:
    # More images than are decoded at a time.
    _write(tmp_path / "train", count=100)
    _write(tmp_path / "test", count=3)
    train, test = _read(tmp_path, size=2)
    assert _numbered(train) == list(product(range(3), range(100)))
    assert _numbered(test) == list(product(range(3), range(3)))


def test_images_of_any_size_and_kind_become_squares_as_pillow_resizes_them(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(0)
    grey = Image.fromarray(random.integers(0, 256, (21, 33), dtype=np.uint8))
    see_through = Image.fromarray(random.integers(0, 256, (16, 9, 4), dtype=np.uint8))
    for name in COLOURS:
        (tmp_path / name).mkdir()
        grey.save(tmp_path / name / "a.png")
        see_through.save(tmp_path / name / "b.png")
    train, test = _read(tmp_path, test_share=0.5)
    assert train.images.shape == test.images.shape == (3, 3, 8, 8)
    expected = [
        np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR))
        for image in (grey, see_through)
    ]
    for image in torch.cat((train.images, test.images)).permute(0, 2, 3, 1).numpy():
        assert any(np.array_equal(image, one) for one in expected)


def _without_mouse(folder: Path) -> None:
    for file in (_write(folder) / "mouse").iterdir():
        file.unlink()


def _other_test_classes(folder: Path) -> None:
    _write(folder / "train")
    _write(folder / "test", names=("bike", "cup", "mouse"))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_without_mouse, "no valid file for the classes mouse"),
        (lambda folder: folder / "nowhere", r"0 folders of classes \(\)"),
        (
            lambda folder: (_write(folder) / "__MACOSX").mkdir(),
            r"4 folders of classes \(__MACOSX, bike, mouse, mug\)",
        ),
        (_other_test_classes, "classes bike, cup, mouse, .* of bike, mouse, mug"),
        (lambda folder: _write(folder, count=1), r"divided with dataset\.test_share=0\.2"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        _read(tmp_path)


def _cut_off() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, "png")
    return whole.getvalue()[:5000]


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"not an image at all", _cut_off()])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    folder = _write(tmp_path)
    (folder / "mug" / "003.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"003\.png is no image, or damaged"):
        _read(folder)
