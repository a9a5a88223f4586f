"""Pictures as files, written and read by Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedpw_flwr.lab.data.image_folders import ImageFolderSet
from fedpw_flwr.lab.data.images import ImageSet

COLOURS = {"bike": (200, 10, 10), "mouse": (10, 200, 10), "mug": (10, 10, 200)}


def _write(folder: Path, count: int = 10, size: tuple[int, int] = (40, 30)) -> Path:
    """Write `count` pictures a class, of its colour and told apart by their brightness."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture = Image.new("RGB", size, tuple(min(255, value + number) for value in colour))
            picture.save(folder / name / f"frame_{number:04d}.png")
    return folder


def _read(
    folder: Path, *, test_share: float = 0.2, image_size: int = 8, channels: int = 3
) -> tuple[ImageSet, ImageSet]:
    return ImageFolderSet(folder, test_share).read(
        image_size=image_size, channels=channels, num_classes=len(COLOURS)
    )


def _brightness(pictures: ImageSet) -> list[tuple[int, int]]:
    """Tell pictures by class and by their number."""
    least = pictures.images.flatten(1).min(dim=1).values - 10
    return list(zip(pictures.labels.tolist(), least.tolist(), strict=True))


def test_classes_are_the_folders_names_in_order(tmp_path: Path) -> None:
    folder = _write(tmp_path)
    assert ImageFolderSet(folder, 0.2).classes() == ["bike", "mouse", "mug"]
    train, test = _read(folder)
    for pictures in (train, test):
        strongest = pictures.images.float().mean(dim=(2, 3)).argmax(dim=1)
        assert torch.equal(strongest, pictures.labels)


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


def test_pictures_of_any_size_and_kind_become_squares_as_pillow_resizes_them(
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
        np.asarray(picture.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR))
        for picture in (grey, see_through)
    ]
    for image in torch.cat((train.images, test.images)).permute(0, 2, 3, 1).numpy():
        assert any(np.array_equal(image, one) for one in expected)


def test_pictures_can_be_read_as_grey(tmp_path: Path) -> None:
    train, _ = _read(_write(tmp_path), channels=1)
    assert train.images.shape == (24, 1, 8, 8)


def test_more_pictures_than_are_decoded_at_a_time_keep_their_order(tmp_path: Path) -> None:
    for label in range(3):
        (tmp_path / "train" / f"{label}").mkdir(parents=True)
        (tmp_path / "test" / f"{label}").mkdir(parents=True)
        for number in range(200):
            picture = Image.new("L", (2, 2), number)
            picture.save(tmp_path / "train" / f"{label}" / f"{number:03d}.png")
        Image.new("L", (2, 2)).save(tmp_path / "test" / f"{label}" / "0.png")
    train, _ = _read(tmp_path, image_size=2, channels=1)
    assert train.images[:, 0, 0, 0].tolist() == list(range(200)) * 3
    assert train.labels.tolist() == [0] * 200 + [1] * 200 + [2] * 200


def test_missing_pictures_are_told_by_their_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no pictures in .*dslr"):
        _read(tmp_path / "dslr")
    (tmp_path / "webcam").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no pictures in .*webcam"):
        _read(tmp_path / "webcam")


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    folder = _write(tmp_path)
    for file in (folder / "mouse").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="no valid file for the classes mouse"):
        _read(folder)


def test_another_number_of_classes_is_refused_with_their_names(tmp_path: Path) -> None:
    folder = _write(tmp_path)
    (folder / "__MACOSX").mkdir()
    with pytest.raises(ValueError, match=r"4 folders of classes \(__MACOSX, bike, mouse, mug\)"):
        _read(folder)


def test_test_pictures_of_other_classes_are_refused(tmp_path: Path) -> None:
    _write(tmp_path / "train")
    (_write(tmp_path / "test") / "mug").rename(tmp_path / "test" / "cup")
    with pytest.raises(ValueError, match=r"classes bike, cup, mouse, .* of bike, mouse, mug"):
        _read(tmp_path)


def test_a_class_too_small_to_be_divided_is_an_error_that_names_the_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be divided with dataset\.test_share=0\.2"):
        _read(_write(tmp_path, count=1))


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"not a picture at all"])
def test_a_file_that_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    folder = _write(tmp_path)
    (folder / "mug" / "frame_0003.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"frame_0003\.png is no picture, or damaged"):
        _read(folder)


def test_a_cut_off_picture_is_named(tmp_path: Path) -> None:
    folder = _write(tmp_path, size=(300, 300))
    file = folder / "bike" / "frame_0000.png"
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"frame_0000\.png is no picture, or damaged"):
        _read(folder)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_impossible_share_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(ValueError, match="test_share must be above 0 and below 1"):
        ImageFolderSet(tmp_path, share)
