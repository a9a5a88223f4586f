"""The four embedded domains, and the digits that are drawn from fonts."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from support.images import are_same

from fedpw_flwr.lab.data.embedded_digits import (
    DOMAINS,
    HANDWRITTEN,
    embedded_digits,
    inverted_on_texture,
    rotated_and_blurred,
)
from fedpw_flwr.lab.data.examples import DomainCollection, ImageFormat, ImageSet
from fedpw_flwr.lab.data.rendered_digits import (
    TEST_FONTS,
    TRAINING_FONTS,
    RenderedDigits,
    rendered_digits,
)


def test_there_are_four_domains_of_rgb_digits(digits: DomainCollection) -> None:
    assert digits.names == DOMAINS
    assert digits.shape == (3, 16, 16)
    for domain in digits.domains:
        assert (len(domain.train), len(domain.test)) == (399, 200)
        assert all(len(one.labels.unique()) == 10 for _, one in domain.splits())


def test_handwritten_domains_use_every_scan_of_scikit_learn_once(digits: DomainCollection) -> None:
    handwritten = [domain for domain in digits.domains if domain.name in HANDWRITTEN]
    used = torch.cat([one.labels for domain in handwritten for _, one in domain.splits()])
    assert torch.equal(used.bincount(), torch.from_numpy(load_digits().target).bincount())


def test_no_test_image_is_a_training_image(digits: DomainCollection) -> None:
    for domain in digits.domains:
        training = {image.numpy().tobytes() for image in domain.train.features}
        assert not training & {image.numpy().tobytes() for image in domain.test.features}


def test_domains_depend_on_no_other_and_no_random_state(digits: DomainCollection) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert are_same(embedded_digits(), digits)
    assert are_same(embedded_digits(["blurred"]).domains[0].train, digits.domains[2].train)
    assert torch.equal(before, torch.get_rng_state())


def test_domains_differ_in_difficulty(digits: DomainCollection) -> None:
    def accuracy(train: ImageSet, test: ImageSet) -> float:
        model = KNeighborsClassifier(n_neighbors=3)
        model.fit(train.images.flatten(1) / 255, train.labels)
        return float(model.score(test.images.flatten(1) / 255, test.labels))

    scores = {domain.name: accuracy(domain.train, domain.test) for domain in digits.domains}
    assert scores["scans"] > 0.9
    assert scores["blurred"] < scores["scans"] - 0.1
    assert max(scores["textured"], scores["fonts"]) < scores["blurred"]


def test_drawn_digits_are_the_same_every_time_and_test_other_fonts() -> None:
    wanted = ImageFormat(16, channels=3, num_classes=10)
    train, test = RenderedDigits(20, 10).read(wanted)
    assert train.labels.bincount().tolist() == [2] * 10
    assert are_same(train, RenderedDigits(20, 30).read(wanted)[0])
    assert len(test) == 10
    assert not set(TRAINING_FONTS) & set(TEST_FONTS)
    assert {file.stem for file in RenderedDigits(1, 1).files()} >= set(TEST_FONTS)


def test_missing_fonts_are_named() -> None:
    with pytest.raises(FileNotFoundError, match="NoSuchFont"):
        rendered_digits(10, ["NoSuchFont"], image_size=12, seed=0)


SQUARES = torch.zeros((50, 1, 16, 16), dtype=torch.uint8)
SQUARES[:, :, 5:11, 5:11] = 255


def test_texture_is_inverted_where_the_digit_is_and_untouched_elsewhere() -> None:
    texture = inverted_on_texture(torch.zeros_like(SQUARES), torch.Generator())
    assert len({one.numpy().tobytes() for one in texture}) == len(texture)
    shifted = inverted_on_texture(SQUARES, torch.Generator())
    ink = SQUARES.expand_as(shifted) > 0
    assert torch.equal(shifted[~ink], texture[~ink])
    assert (shifted[ink].int() - (255 - texture[ink].int())).abs().max() <= 1


def test_rotation_keeps_the_middle_and_turns_the_corners() -> None:
    turned = rotated_and_blurred(SQUARES, torch.Generator()).float()
    assert turned[:, :, 7:9, 7:9].mean() > turned[:, :, 0].mean() + 100
    assert turned[:, 0, 5, 5].std() > 15
