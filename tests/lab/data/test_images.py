from __future__ import annotations

import pytest
import torch

from fedpw_flwr.lab.data.images import Domain, DomainCollection, ImageSet


def _pictures(count: int = 4, channels: int = 3, size: int = 8, label: int = 0) -> ImageSet:
    return ImageSet(
        torch.zeros((count, channels, size, size), dtype=torch.uint8),
        torch.full((count,), label, dtype=torch.int64),
    )


def test_pictures_of_another_dtype_or_shape_are_refused() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"uint8 tensor of shape \(N, C, H, W\), got torch.float32"
    ):
        ImageSet(torch.zeros((4, 3, 8, 8)), labels)
    with pytest.raises(ValueError, match=r"got torch.uint8 of shape \(4, 8, 8\)"):
        ImageSet(torch.zeros((4, 8, 8), dtype=torch.uint8), labels)


def test_labels_of_another_dtype_or_length_are_refused() -> None:
    images = torch.zeros((4, 3, 8, 8), dtype=torch.uint8)
    with pytest.raises(ValueError, match="labels must be an int64 tensor"):
        ImageSet(images, torch.zeros(4))
    with pytest.raises(ValueError, match="4 images and 3 labels"):
        ImageSet(images, torch.zeros(3, dtype=torch.int64))


def test_domain_without_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="domain 'a' has no test pictures"):
        Domain("a", _pictures(), _pictures(count=0))


def test_domains_must_agree_on_one_shape() -> None:
    domains = (
        Domain("a", _pictures(), _pictures()),
        Domain("b", _pictures(), _pictures(size=9)),
    )
    with pytest.raises(ValueError, match="test pictures of domain 'b'"):
        DomainCollection(domains, num_classes=10)


def test_label_outside_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0..9: training pictures of domain 'a'"):
        DomainCollection((Domain("a", _pictures(label=10), _pictures()),), num_classes=10)


def test_two_domains_of_one_name_are_refused() -> None:
    domain = Domain("a", _pictures(), _pictures())
    with pytest.raises(ValueError, match="must differ"):
        DomainCollection((domain, domain), num_classes=10)


def test_normalisation_must_fit_the_channels() -> None:
    domain = Domain("a", _pictures(channels=1), _pictures(channels=1))
    with pytest.raises(ValueError, match=r"one number a channel \(1\)"):
        DomainCollection((domain,), num_classes=10)
    with pytest.raises(ValueError, match="std must be positive"):
        DomainCollection((domain,), num_classes=10, mean=(0.5,), std=(0.0,))
