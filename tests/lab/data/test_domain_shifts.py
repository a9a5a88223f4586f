from __future__ import annotations

import pytest
import torch

from fedpw_flwr.lab.data.domain_shifts import inverted_on_texture, rotated_and_blurred


@pytest.fixture
def squares() -> torch.Tensor:
    images = torch.zeros((50, 1, 16, 16), dtype=torch.uint8)
    images[:, :, 5:11, 5:11] = 255
    return images


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_texture_is_inverted_where_the_digit_is_and_untouched_elsewhere(
    squares: torch.Tensor,
) -> None:
    texture = inverted_on_texture(torch.zeros_like(squares), _generator())
    shifted = inverted_on_texture(squares, _generator())
    ink = squares.expand_as(shifted) > 0
    assert torch.equal(shifted[~ink], texture[~ink])
    difference = shifted[ink].int() - (255 - texture[ink].int())
    assert difference.abs().max() <= 1


def test_every_texture_is_another_one(squares: torch.Tensor) -> None:
    textures = inverted_on_texture(torch.zeros_like(squares), _generator())
    assert len({texture.numpy().tobytes() for texture in textures}) == len(textures)


def test_rotation_keeps_the_middle_and_turns_the_corners(squares: torch.Tensor) -> None:
    turned = rotated_and_blurred(squares, _generator()).float()
    middle, border = turned[:, :, 7:9, 7:9].mean(), turned[:, :, 0].mean()
    assert middle > border + 100
    corners = turned[:, 0, 5, 5]
    assert corners.std() > 15


def test_shifted_pictures_are_rgb_bytes(squares: torch.Tensor) -> None:
    for shift in (inverted_on_texture, rotated_and_blurred):
        shifted = shift(squares, _generator())
        assert shifted.dtype == torch.uint8
        assert shifted.shape == (50, 3, 16, 16)
