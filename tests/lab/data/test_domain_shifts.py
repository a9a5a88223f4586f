from __future__ import annotations

import torch

from fedpw_flwr.lab.data.domain_shifts import inverted_on_texture, rotated_and_blurred

SQUARES = torch.zeros((50, 1, 16, 16), dtype=torch.uint8)
SQUARES[:, :, 5:11, 5:11] = 255


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_texture_is_inverted_where_the_digit_is_and_untouched_elsewhere() -> None:
    texture = inverted_on_texture(torch.zeros_like(SQUARES), _generator())
    shifted = inverted_on_texture(SQUARES, _generator())
    ink = SQUARES.expand_as(shifted) > 0
    assert torch.equal(shifted[~ink], texture[~ink])
    assert (shifted[ink].int() - (255 - texture[ink].int())).abs().max() <= 1


def test_every_texture_is_another_one() -> None:
    textures = inverted_on_texture(torch.zeros_like(SQUARES), _generator())
    assert len({texture.numpy().tobytes() for texture in textures}) == len(textures)


def test_rotation_keeps_the_middle_and_turns_the_corners() -> None:
    turned = rotated_and_blurred(SQUARES, _generator()).float()
    assert turned[:, :, 7:9, 7:9].mean() > turned[:, :, 0].mean() + 100
    assert turned[:, 0, 5, 5].std() > 15
