"""Pictures as files, written and read by Pillow."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedpw_flwr.lab.data.image_folders import ImageFolderSet
from fedpw_flwr.lab.data.images import ImageFormat, ImageSet

COLOURS = {"bike": (200, 10, 10), "mouse": (10, 200, 10), "mug": (10, 10, 200)}


def _write(folder: Path, count: int = 10) -> Path:
    """Write `count` images a class, of its colour and told apart by their brightness."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (40, 30), tuple(min(255, value + number) for value in colour))
            image.save(folder / name / f"frame_{number:04d}.png")
    return folder


def _read(
    folder: Path, *, test_share: float = 0.2, size: int = 8, channels: int = 3
) -> tuple[ImageSet, ImageSet]:
    return ImageFolderSet(folder, test_share).read(ImageFormat(size, channels, len(COLOURS)))


def _brightness(images: ImageSet) -> list[tuple[int, int]]:
    """Tell images by class and by their number."""
    least = images.images.flatten(1).min(dim=1).values - 10
    return list(zip(images.labels.tolist(), least.tolist(), strict=True))


def test_classes_are_the_folders_names_in_order(tmp_path: Path) -> None:
    train, test = _read(_write(tmp_path))
    for images in (train, test):
        strongest = images.images.float().mean(dim=(2, 3)).argmax(dim=1)
        assert torch.equal(strongest, images.labels)


def test_an_undivided_set_keeps_the_same_share_of_every_class_for_testing(tmp_path: Path) -> None:
    folder = _write(tmp_path)
    (train, test), (_, again) = _read(folder), _read(folder)
    assert test.labels.bincount().tolist() == [2, 2, 2]
    assert train.labels.bincount().tolist() == [8, 8, 8]
    assert sorted(_brightness(train) + _brightness(test)) == [
        (label, number) for label in range(3) for number in range(10)
    ]
    assert torch.equal(test.images, again.images)
    assert len(_read(folder, test_share=0.5)[1]) == 15


def test_folders_train_and_test_say_what_is_tested_on(tmp_path: Path) -> None:
    _write(tmp_path / "train", count=4)
    _write(tmp_path / "test", count=3)
    assert ImageFolderSet(tmp_path, 0.2).classes() == ["bike", "mouse", "mug"]
    train, test = _read(tmp_path)
    assert (len(train), len(test)) == (12, 9)


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


def test_more_images_than_are_decoded_at_a_time_keep_their_order(tmp_path: Path) -> None:
    for label in range(3):
        for part, count in (("train", 200), ("test", 1)):
            folder = tmp_path / part / f"{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("L", (2, 2), number).save(folder / f"{number:03d}.png")
    train, _ = _read(tmp_path, size=2, channels=1)
    assert train.images[:, 0, 0, 0].tolist() == list(range(200)) * 3
    assert train.labels.tolist() == [0] * 200 + [1] * 200 + [2] * 200


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    folder = _write(tmp_path)
    for file in (folder / "mouse").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="no valid file for the classes mouse"):
        _read(folder)


def test_another_number_of_classes_is_refused_with_their_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere has 0 folders of classes \(\)"):
        _read(tmp_path / "nowhere")
    (_write(tmp_path) / "__MACOSX").mkdir()
    with pytest.raises(ValueError, match=r"4 folders of classes \(__MACOSX, bike, mouse, mug\)"):
        _read(tmp_path)


def test_test_images_of_other_classes_are_refused(tmp_path: Path) -> None:
    _write(tmp_path / "train")
    (_write(tmp_path / "test") / "mug").rename(tmp_path / "test" / "cup")
    with pytest.raises(ValueError, match=r"classes bike, cup, mouse, .* of bike, mouse, mug"):
        _read(tmp_path)


def test_a_class_too_small_to_be_divided_is_an_error_that_names_the_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be divided with dataset\.test_share=0\.2"):
        _read(_write(tmp_path, count=1))


def _cut_off() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, "png")
    return whole.getvalue()[:5000]


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"not an image at all", _cut_off()])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    folder = _write(tmp_path)
    (folder / "mug" / "frame_0003.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"frame_0003\.png is no image, or damaged"):
        _read(folder)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="test_share must be above 0 and below 1"):
        ImageFolderSet(Path(), share)
