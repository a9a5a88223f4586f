from __future__ import annotations

import pytest
import torch
from support.images import random_images

from fedpw_flwr.lab.data.examples import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Domain,
    DomainCollection,
    ImageSet,
    at_most,
)


def _images(count: int = 4, channels: int = 3, size: int = 8, label: int = 0) -> ImageSet:
    return ImageSet(
        torch.zeros((count, channels, size, size), dtype=torch.uint8),
        torch.full((count,), label, dtype=torch.int64),
    )


IMAGES, LABELS = torch.zeros((4, 3, 8, 8), dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.float(), LABELS, r"uint8 and shape \(N, C, H, W\), got torch.float32"),
        (IMAGES[:, 0], LABELS, r"got torch.uint8 of shape \(4, 8, 8\)"),
        (IMAGES, LABELS.float(), "labels must be a tensor of torch.int64"),
        (IMAGES, LABELS[:3], "4 examples and 3 labels"),
    ],
)
def test_tensors_of_another_form_are_refused(
    images: torch.Tensor, labels: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSet(images, labels)


def test_domain_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="domain 'a' has no test examples"):
        Domain("a", _images(), _images(count=0))


A, B = Domain("a", _images(), _images()), Domain("b", _images(), _images(size=9))


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ((A, B), "test examples of domain 'b'"),
        ((Domain("a", _images(label=10), _images()),), r"0..9: training examples of domain 'a'"),
        ((A, A), "must differ"),
        ((), "at least one domain"),
    ],
)
def test_domains_that_do_not_go_together_are_refused(
    domains: tuple[Domain, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        DomainCollection(domains, num_classes=10)


def test_normalisation_is_imagenets_or_must_fit_the_channels() -> None:
    assert DomainCollection((A,), 10).mean == IMAGENET_MEAN
    grey = Domain("a", _images(channels=1), _images(channels=1))
    assert DomainCollection((grey,), 10).std == (sum(IMAGENET_STD) / 3,)
    with pytest.raises(ValueError, match=r"one number a channel \(1\)"):
        DomainCollection((grey,), 10, mean=IMAGENET_MEAN)
    with pytest.raises(ValueError, match="std must be positive"):
        DomainCollection((grey,), 10, mean=(0.5,), std=(0.0,))


def test_at_most_so_many_images_are_drawn_none_twice() -> None:
    images = random_images(200, seed=0)
    assert at_most(images, None) is at_most(images, 200) is images
    assert len({image.numpy().tobytes() for image in at_most(images, 150).images}) == 150


def _digest(
    pixel: int = 7,
    label: int = 1,
    name: str = "a",
    classes: int = 2,
    layout: torch.memory_format = torch.contiguous_format,
) -> str:
    images = torch.full((3, 2, 2, 2), 7, dtype=torch.uint8)
    images[2, 0, 1, 1] = pixel
    train = ImageSet(images.contiguous(memory_format=layout), torch.tensor([0, 1, label]))
    test = ImageSet(torch.zeros((1, 2, 2, 2), dtype=torch.uint8), torch.tensor([0]))
    return DomainCollection((Domain(name, train, test),), classes).digest()


def test_any_other_image_label_name_or_number_of_classes_is_another_digest() -> None:
    others = [_digest(pixel=8), _digest(label=0), _digest(name="b"), _digest(classes=3)]
    assert len({_digest(), *others}) == 5


def test_memory_layout_is_no_part_of_the_digest() -> None:
    assert _digest(pixel=8, layout=torch.channels_last) == _digest(pixel=8)
