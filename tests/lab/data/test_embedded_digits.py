from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from fedpw_flwr.lab.data.embedded_digits import DOMAINS, HANDWRITTEN, embedded_digits
from fedpw_flwr.lab.data.images import DomainCollection, ImageSet
from fedpw_flwr.lab.data.rendered_digits import TEST_FONTS, TRAINING_FONTS, rendered_digits


def test_there_are_four_domains_of_rgb_digits(digits: DomainCollection) -> None:
    assert digits.names == DOMAINS
    assert digits.image_shape == (3, 16, 16)
    for domain in digits.domains:
        assert (len(domain.train), len(domain.test)) == (399, 200)
        assert domain.train.labels.unique().tolist() == list(range(10))
        assert domain.test.labels.unique().tolist() == list(range(10))


def test_handwritten_domains_use_every_picture_of_scikit_learn_once(
    digits: DomainCollection,
) -> None:
    used = torch.cat(
        [
            split.labels
            for domain in digits.domains
            if domain.name in HANDWRITTEN
            for split in (domain.train, domain.test)
        ]
    )
    all_labels = torch.from_numpy(load_digits().target)
    assert torch.equal(used.bincount(), all_labels.bincount())


def test_no_test_picture_is_a_training_picture(digits: DomainCollection) -> None:
    for domain in digits.domains:
        training = {picture.numpy().tobytes() for picture in domain.train.images}
        test = {picture.numpy().tobytes() for picture in domain.test.images}
        assert not training & test


def test_domains_are_the_same_in_every_process(digits: DomainCollection) -> None:
    torch.manual_seed(123)
    again = embedded_digits()
    for first, second in zip(digits.domains, again.domains, strict=True):
        assert torch.equal(first.train.images, second.train.images)
        assert torch.equal(first.test.images, second.test.images)


def test_making_the_domains_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    embedded_digits(["textured", "fonts"])
    assert torch.equal(before, torch.get_rng_state())


def test_leaving_a_domain_out_does_not_change_the_others(digits: DomainCollection) -> None:
    (blurred,) = embedded_digits(["blurred"]).domains
    assert torch.equal(blurred.train.images, digits.domains[2].train.images)


def test_domains_differ_in_difficulty(digits: DomainCollection) -> None:
    def accuracy(train: ImageSet, test: ImageSet) -> float:
        model = KNeighborsClassifier(n_neighbors=3)
        model.fit(train.images.flatten(1) / 255, train.labels)
        return float(model.score(test.images.flatten(1) / 255, test.labels))

    scores = {domain.name: accuracy(domain.train, domain.test) for domain in digits.domains}
    assert scores["scans"] > 0.9
    assert scores["blurred"] < scores["scans"] - 0.1
    assert max(scores["textured"], scores["fonts"]) < scores["blurred"]


def test_test_fonts_are_not_training_fonts() -> None:
    assert not set(TRAINING_FONTS) & set(TEST_FONTS)


def test_classes_of_rendered_digits_are_balanced() -> None:
    pictures = rendered_digits(100, TRAINING_FONTS, image_size=12, seed=0)
    assert pictures.images.shape == (100, 3, 12, 12)
    assert pictures.labels.bincount().tolist() == [10] * 10


def test_fonts_without_digits_are_left_out() -> None:
    with_symbols = rendered_digits(20, ["DejaVuSansDisplay", "cmr10"], image_size=12, seed=0)
    without = rendered_digits(20, ["cmr10"], image_size=12, seed=0)
    assert torch.equal(with_symbols.images, without.images)


def test_missing_fonts_are_named() -> None:
    with pytest.raises(FileNotFoundError, match="NoSuchFont"):
        rendered_digits(10, ["NoSuchFont"], image_size=12, seed=0)


def test_unknown_domain_is_named_with_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match=r"has \['scan'\], allowed are \['scans', 'textured'"):
        embedded_digits(["scan"])


def test_pictures_too_small_for_digits_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 8 pixels, got 7"):
        embedded_digits(image_size=7)
