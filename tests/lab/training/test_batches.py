from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import normalize

from fedpw_flwr.lab.data.examples import IMAGENET_MEAN, IMAGENET_STD, Examples, ImageSet
from fedpw_flwr.lab.training.batches import Normalisation, padded_on_device, training_batches

CPU = torch.device("cpu")


def _numbered(count: int, size: int = 3) -> ImageSet:
    """Image i is all i + 1."""
    images = torch.arange(1, count + 1, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageSet(images.expand(count, 1, size, size).clone(), torch.arange(count))


def _random(count: int = 5) -> ImageSet:
    return ImageSet(torch.randint(0, 256, (count, 3, 4, 6), dtype=torch.uint8), torch.arange(count))


def _batches(
    image_set: ImageSet, batch_size: int = 500, seed: int = 0, **options: Any
) -> list[tuple[Tensor, Tensor]]:
    """Batches whose pixels are as they were, 0 to 255."""
    channels = image_set.images.shape[1]
    return list(
        training_batches(
            image_set,
            Normalisation((0.0,) * channels, (1 / 255,) * channels, CPU),
            batch_size=batch_size,
            generator=torch.Generator().manual_seed(seed),
            **{"crop_padding": 0, "epochs": 1, **options},
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
def test_last_batch_of_one_image_joins_the_one_before(
    count: int, batch_size: int, sizes: list[int]
) -> None:
    assert [len(labels) for _, labels in _batches(_numbered(count), batch_size)] == sizes


def test_each_epoch_shows_every_image_once_with_its_label_in_another_order() -> None:
    batches = _batches(_numbered(20), epochs=3)
    for images, labels in batches:
        assert sorted(labels.tolist()) == list(range(20))
        assert torch.allclose(images[:, 0, 1, 1], labels + 1.0)
    assert len({tuple(labels.tolist()) for _, labels in batches}) == 3


def test_crop_is_a_window_of_the_image_in_black_padding() -> None:
    image = torch.arange(1, 13, dtype=torch.uint8).view(1, 1, 3, 4)
    padded = torch.nn.functional.pad(image.float(), (2, 2, 2, 2))[0, 0]
    windows = [padded[y : y + 3, x : x + 4] for y in range(5) for x in range(5)]
    images = ImageSet(image.repeat(200, 1, 1, 1), torch.zeros(200, dtype=torch.int64))
    ((cuts, _),) = _batches(images, crop_padding=2)
    seen = [
        [index for index, window in enumerate(windows) if torch.allclose(cut, window)]
        for cut in cuts[:, 0]
    ]
    assert all(seen)
    assert {index for matched in seen for index in matched} == set(range(25))


def test_a_batch_is_contiguous_and_keeps_colours_in_their_channels() -> None:
    images = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).repeat(4, 1, 5, 6)
    ((cut, _),) = _batches(ImageSet(images, torch.arange(4)))
    assert cut.is_contiguous()
    assert torch.allclose(cut, images.float())


def test_normalisation_agrees_with_torchvision() -> None:
    pixels = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8)
    ours = Normalisation(IMAGENET_MEAN, IMAGENET_STD, CPU)(pixels)
    reference = normalize(pixels.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert torch.allclose(ours, reference, atol=1e-5)


def test_generator_alone_decides_the_batches() -> None:
    image_set, results = _numbered(12), []
    for torch_seed, seed in ((0, 0), (1, 0), (1, 1)):
        torch.manual_seed(torch_seed)
        batches = _batches(image_set, 5, seed, crop_padding=1)
        results.append(torch.cat([images for images, _ in batches]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_half_of_the_images_are_mirrored_others_in_each_epoch() -> None:
    as_it_is, mirror = torch.tensor([1.0, 2, 3, 4]), torch.tensor([4.0, 3, 2, 1])
    image_set = ImageSet(as_it_is.byte().expand(400, 1, 4, 4).clone(), torch.arange(400))
    flips: dict[int, list[bool]] = {}
    for images, labels in _batches(image_set, 70, epochs=2, horizontal_flip=True):
        for image, label in zip(images[:, 0], labels.tolist(), strict=True):
            is_mirrored = torch.allclose(image, mirror.expand(4, 4))
            assert is_mirrored or torch.allclose(image, as_it_is.expand(4, 4))
            flips.setdefault(label, []).append(is_mirrored)
    first, second = zip(*flips.values(), strict=True)
    # 400 fair draws lie in 150 to 250 but once in millions of seeds.
    assert 150 < sum(first) < 250
    assert 150 < sum(second) < 250
    assert first != second


def test_a_mirrored_image_keeps_its_rank_its_label_and_its_crop() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (30, 3, 6, 6), generator=generator, dtype=torch.uint8)
    image_set = ImageSet(images, torch.arange(30))
    ((plain, labels),), ((mirrored, same),) = (
        _batches(image_set, seed=7, crop_padding=2, horizontal_flip=flip) for flip in (False, True)
    )
    assert torch.equal(labels, same)
    kept = (mirrored == plain).flatten(1).all(dim=1)
    turned = (mirrored == plain.flip(3)).flatten(1).all(dim=1)
    assert (kept ^ turned).all()
    assert 0 < int(turned.sum()) < 30


def test_images_lie_in_black_margins_made_once_a_process_and_not_changed_by_training() -> None:
    image_set = _random()
    images, labels = padded_on_device(image_set, CPU, 2)
    assert images.shape == (5, 3, 8, 10)
    assert torch.equal(images[:, :, 2:-2, 2:-2], image_set.images)
    assert int(images.sum()) == int(image_set.images.sum())
    assert torch.equal(labels, image_set.labels)
    before = images.clone()
    _batches(image_set, batch_size=2, crop_padding=2, epochs=2)
    assert padded_on_device(image_set, CPU, 2)[0] is images
    assert torch.equal(images, before)


def test_a_worker_keeps_the_images_of_a_bounded_number_of_clients_and_mistakes_none() -> None:
    for image_set in [_random() for _ in range(100)]:
        assert torch.equal(padded_on_device(image_set, CPU, 0)[0], image_set.images)
    assert padded_on_device.cache_info().currsize <= 32


def test_rows_of_a_table_are_shuffled_and_else_as_they_are() -> None:
    rows = Examples(torch.arange(10.0)[:, None] / 10, torch.arange(10))
    batches = list(
        training_batches(
            rows,
            Normalisation((), (), CPU),
            batch_size=4,
            crop_padding=2,
            horizontal_flip=True,
            epochs=2,
            generator=torch.Generator().manual_seed(1),
        )
    )
    assert [len(labels) for _, labels in batches] == [4, 4, 2] * 2
    for features, labels in batches:
        assert torch.equal(features[:, 0], labels / 10)
    epochs = [torch.cat([labels for _, labels in batches[n : n + 3]]) for n in (0, 3)]
    assert not torch.equal(*epochs)
    assert torch.equal(epochs[0].sort().values, rows.labels)
