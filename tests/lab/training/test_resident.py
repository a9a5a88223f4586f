from __future__ import annotations

import torch

from fedpw_flwr.lab.data.images import ImageSet
from fedpw_flwr.lab.training.batches import Normalisation, training_batches
from fedpw_flwr.lab.training.resident import on_device, padded_on_device

CPU = torch.device("cpu")


def _pictures(count: int = 5) -> ImageSet:
    images = torch.randint(0, 256, (count, 3, 4, 6), dtype=torch.uint8)
    return ImageSet(images, torch.arange(count))


def test_pictures_lie_in_the_middle_of_black_margins() -> None:
    pictures = _pictures()
    images, labels = padded_on_device(pictures, CPU, 2)
    assert images.shape == (5, 3, 8, 10)
    assert torch.equal(images[:, :, 2:-2, 2:-2], pictures.images)
    assert int(images.sum()) == int(pictures.images.sum())
    assert torch.equal(labels, pictures.labels)


def test_a_share_is_padded_once_a_process_and_not_changed_by_training() -> None:
    pictures = _pictures()
    images, _ = padded_on_device(pictures, CPU, 1)
    before = images.clone()
    for _ in training_batches(
        pictures,
        Normalisation((0.5,) * 3, (0.5,) * 3, CPU),
        batch_size=2,
        crop_padding=1,
        epochs=2,
        generator=torch.Generator(),
    ):
        pass
    assert padded_on_device(pictures, CPU, 1)[0] is images
    assert torch.equal(images, before)


def test_equal_shapes_of_two_clients_are_not_mistaken_for_one_another() -> None:
    first, second = _pictures(), _pictures()
    assert torch.equal(padded_on_device(first, CPU, 0)[0], first.images)
    assert torch.equal(padded_on_device(second, CPU, 0)[0], second.images)


def test_a_worker_keeps_the_pictures_of_a_bounded_number_of_clients() -> None:
    for _ in range(100):
        padded_on_device(_pictures(), CPU, 1)
    assert padded_on_device.cache_info().currsize <= 32


def test_test_pictures_already_on_the_device_are_not_copied() -> None:
    pictures = _pictures()
    assert on_device(pictures, CPU).images.data_ptr() == pictures.images.data_ptr()
