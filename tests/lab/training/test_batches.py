from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2.functional import normalize

from fedpw_flwr.lab.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageSet
from fedpw_flwr.lab.training.batches import Normalisation, training_batches

CPU = torch.device("cpu")
RAW = Normalisation((0.0,), (1 / 255,), CPU)
"""Leaves pixels as they are, 0 to 255."""


def _numbered(count: int, size: int = 3) -> ImageSet:
    """Picture i is all i + 1."""
    images = torch.arange(1, count + 1, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageSet(images.expand(count, 1, size, size).clone(), torch.arange(count))


def _batches(
    pictures: ImageSet, batch_size: int, crop_padding: int = 0, epochs: int = 1, seed: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(
        training_batches(
            pictures,
            RAW,
            batch_size=batch_size,
            crop_padding=crop_padding,
            epochs=epochs,
            generator=torch.Generator().manual_seed(seed),
        )
    )


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 5]),
        (8, 4, [4, 4]),
        (3, 4, [3]),
        (5, 4, [5]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_last_batch_of_one_picture_joins_the_one_before(
    count: int, batch_size: int, sizes: list[int]
) -> None:
    assert [len(labels) for _, labels in _batches(_numbered(count), batch_size)] == sizes


def test_each_epoch_shows_every_picture_once_with_its_label_in_another_order() -> None:
    batches = _batches(_numbered(20), batch_size=20, epochs=3)
    orders = [labels.tolist() for _, labels in batches]
    for images, labels in batches:
        assert sorted(labels.tolist()) == list(range(20))
        assert torch.allclose(images[:, 0, 1, 1], labels + 1.0)
    assert len({tuple(order) for order in orders}) == 3


def test_crop_is_a_window_of_the_picture_in_black_padding() -> None:
    picture = torch.arange(1, 13, dtype=torch.uint8).view(1, 1, 3, 4)
    padded = torch.nn.functional.pad(picture.float(), (2, 2, 2, 2))[0, 0]
    windows = [padded[y : y + 3, x : x + 4] for y in range(5) for x in range(5)]
    pictures = ImageSet(picture.repeat(200, 1, 1, 1), torch.zeros(200, dtype=torch.int64))
    ((images, _),) = _batches(pictures, batch_size=200, crop_padding=2)
    seen = {
        place
        for cut in images[:, 0]
        for place, window in enumerate(windows)
        if torch.allclose(cut, window)
    }
    matched = [any(torch.allclose(cut, window) for window in windows) for cut in images[:, 0]]
    assert all(matched)
    assert len(seen) == 25


def test_colours_stay_in_their_channels() -> None:
    images = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).repeat(4, 1, 5, 5)
    pictures = ImageSet(images, torch.zeros(4, dtype=torch.int64))
    normalisation = Normalisation((0.0,) * 3, (1 / 255,) * 3, CPU)
    ((cut, _),) = training_batches(
        pictures,
        normalisation,
        batch_size=4,
        crop_padding=0,
        epochs=1,
        generator=torch.Generator(),
    )
    assert torch.allclose(cut, images.float())


def test_normalisation_agrees_with_torchvision() -> None:
    pixels = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8)
    ours = Normalisation(IMAGENET_MEAN, IMAGENET_STD, CPU)(pixels)
    reference = normalize(pixels.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert torch.allclose(ours, reference, atol=1e-5)


def test_a_batch_is_contiguous_in_plain_order() -> None:
    pictures = ImageSet(torch.zeros((6, 3, 5, 4), dtype=torch.uint8), torch.arange(6))
    normalisation = Normalisation((0.5,) * 3, (0.5,) * 3, CPU)
    ((images, _),) = training_batches(
        pictures,
        normalisation,
        batch_size=6,
        crop_padding=2,
        epochs=1,
        generator=torch.Generator(),
    )
    assert images.shape == (6, 3, 5, 4)
    assert images.is_contiguous()


def test_generator_alone_decides_the_batches() -> None:
    pictures = _numbered(12)
    torch.manual_seed(0)
    first = _batches(pictures, 5, crop_padding=1)
    torch.manual_seed(1)
    again = _batches(pictures, 5, crop_padding=1)
    other = _batches(pictures, 5, crop_padding=1, seed=1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(first, other, strict=True))


def _mirrored(seed: int, *, horizontal_flip: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    columns = torch.arange(1, 5, dtype=torch.uint8)
    pictures = ImageSet(columns.expand(400, 1, 4, 4).clone(), torch.arange(400))
    return list(
        training_batches(
            pictures,
            RAW,
            batch_size=70,
            crop_padding=0,
            epochs=2,
            generator=torch.Generator().manual_seed(seed),
            horizontal_flip=horizontal_flip,
        )
    )


def test_half_of_the_pictures_are_mirrored_others_in_each_epoch() -> None:
    as_it_is, mirror = torch.tensor([1.0, 2, 3, 4]), torch.tensor([4.0, 3, 2, 1])
    flips: dict[int, list[bool]] = {}
    for images, labels in _mirrored(0, horizontal_flip=True):
        for image, label in zip(images[:, 0], labels.tolist(), strict=True):
            is_mirrored = torch.allclose(image, mirror.expand(4, 4))
            assert is_mirrored or torch.allclose(image, as_it_is.expand(4, 4))
            flips.setdefault(label, []).append(is_mirrored)
    first, second = zip(*flips.values(), strict=True)
    # 400 fair draws lie in 150 to 250 but once in millions of seeds.
    assert 150 < sum(first) < 250
    assert 150 < sum(second) < 250
    assert first != second


def test_mirroring_leaves_the_first_epochs_order_as_it_was() -> None:
    plain, mirrored = (_mirrored(5, horizontal_flip=flip)[:6] for flip in (False, True))
    for (_, labels), (_, same) in zip(plain, mirrored, strict=True):
        assert torch.equal(labels, same)


def test_a_mirrored_picture_keeps_its_label_and_its_crop() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (30, 3, 6, 6), generator=generator, dtype=torch.uint8)
    pictures = ImageSet(images, torch.arange(30))
    normalisation = Normalisation((0.0,) * 3, (1 / 255,) * 3, CPU)
    ((plain, labels),), ((mirrored, same),) = (
        list(
            training_batches(
                pictures,
                normalisation,
                batch_size=30,
                crop_padding=2,
                epochs=1,
                generator=torch.Generator().manual_seed(7),
                horizontal_flip=flip,
            )
        )
        for flip in (False, True)
    )
    assert torch.equal(labels, same)
    kept = (mirrored == plain).flatten(1).all(dim=1)
    turned = (mirrored == plain.flip(3)).flatten(1).all(dim=1)
    assert (kept ^ turned).all()
    assert 0 < int(turned.sum()) < 30
