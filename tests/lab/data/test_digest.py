"""Pictures have a digest: the same wherever they lie, another one for any other picture."""

from __future__ import annotations

import torch

from fedpw_flwr.lab.data.digest import pictures_digest
from fedpw_flwr.lab.data.images import Domain, DomainCollection, ImageSet


def _collection(pixel: int = 7, label: int = 1, name: str = "a", classes: int = 2) -> str:
    images = torch.full((3, 1, 2, 2), 7, dtype=torch.uint8)
    images[2, 0, 1, 1] = pixel
    train = ImageSet(images, torch.tensor([0, 1, label]))
    test = ImageSet(torch.zeros((1, 1, 2, 2), dtype=torch.uint8), torch.tensor([0]))
    return pictures_digest(DomainCollection((Domain(name, train, test),), classes, (0.5,), (0.2,)))


def test_any_other_picture_label_name_or_number_of_classes_is_another_digest() -> None:
    digests = {
        _collection(),
        _collection(pixel=8),
        _collection(label=0),
        _collection(name="b"),
        _collection(classes=3),
    }
    assert len(digests) == 5


def test_memory_layout_is_no_part_of_the_digest() -> None:
    images = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
    labels = torch.tensor([0, 1])
    as_is, permuted = (
        pictures_digest(
            DomainCollection((Domain("a", ImageSet(held, labels), ImageSet(held, labels)),), 2)
        )
        for held in (images, images.contiguous(memory_format=torch.channels_last))
    )
    assert as_is == permuted
