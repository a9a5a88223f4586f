"""Images have a digest: the same wherever they lie, another one for any other image."""

from __future__ import annotations

import torch

from fedpw_flwr.lab.data.digest import pictures_digest
from fedpw_flwr.lab.data.examples import Domain, DomainCollection, ImageSet


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
    return pictures_digest(DomainCollection((Domain(name, train, test),), classes))


def test_any_other_image_label_name_or_number_of_classes_is_another_digest() -> None:
    others = [_digest(pixel=8), _digest(label=0), _digest(name="b"), _digest(classes=3)]
    assert len({_digest(), *others}) == 5


def test_memory_layout_is_no_part_of_the_digest() -> None:
    assert _digest(pixel=8, layout=torch.channels_last) == _digest(pixel=8)
