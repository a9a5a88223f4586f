"""Four domains of digits without any download: a first run works on any machine.

``scans``
    Handwritten digits as scikit-learn bundles them (8x8 grey scans of the UCI optical recognition
    set), enlarged.
``textured``
    Other pictures of the same set, inverted on coloured textures.
``blurred``
    Yet other pictures of it, rotated, blurred and noisy.
``fonts``
    Digits drawn from fonts, see :mod:`fedpw_flwr.lab.data.rendered_digits`.

The three handwritten domains hold disjoint thirds of the 1,797 pictures. Domains, and their
training and test pictures, are the same in every run, whatever its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from fedpw_flwr.lab.data.conversion import resize
from fedpw_flwr.lab.data.domain_shifts import inverted_on_texture, plain, rotated_and_blurred
from fedpw_flwr.lab.data.images import Domain, DomainCollection, ImageSet
from fedpw_flwr.lab.data.rendered_digits import TEST_FONTS, TRAINING_FONTS, rendered_digits

HANDWRITTEN = ("scans", "textured", "blurred")
"""Domains made of parts of scikit-learn's handwritten digits."""
DOMAINS = (*HANDWRITTEN, "fonts")
"""All domains which can be asked for."""

_TEST_PICTURES = 200
_FONT_TRAINING_PICTURES = 399
_DATA_SEED = 20251


def embedded_digits(domains: Sequence[str] = DOMAINS, *, image_size: int = 16) -> DomainCollection:
    """Make the four domains, or some of them.

    Parameters
    ----------
    domains : sequence of str, default all four
        Names among ``scans``, ``textured``, ``blurred`` and ``fonts``, in client order. Leaving one
        out does not change the others.
    image_size : int, default 16
        Height and width, in pixels, at least 8.

    Returns
    -------
    DomainCollection
        RGB pictures, 10 classes, 399 training and 200 test pictures a domain, ImageNet's
        normalisation.

    Raises
    ------
    ValueError
        If a name is not one of the four, or `image_size` is below 8.
    """
    unknown = [name for name in domains if name not in DOMAINS]
    if unknown:
        raise ValueError(f"dataset.domains has {unknown}, allowed are {list(DOMAINS)}")
    if image_size < 8:
        raise ValueError(f"dataset.image_size must be at least 8 pixels, got {image_size}")
    return DomainCollection(
        domains=tuple(_make_domain(name, image_size) for name in domains), num_classes=10
    )


def _make_domain(name: str, image_size: int) -> Domain:
    if name in HANDWRITTEN:
        return _handwritten_domain(name, image_size)
    return Domain(
        name,
        train=rendered_digits(
            _FONT_TRAINING_PICTURES, TRAINING_FONTS, image_size=image_size, seed=_DATA_SEED
        ),
        test=rendered_digits(
            _TEST_PICTURES, TEST_FONTS, image_size=image_size, seed=_DATA_SEED + 1
        ),
    )


def _handwritten_domain(name: str, image_size: int) -> Domain:
    third = HANDWRITTEN.index(name)
    pictures, digits = _scans()
    order = np.random.default_rng(_DATA_SEED).permutation(len(digits))
    own = order[third :: len(HANDWRITTEN)]
    grey = torch.from_numpy((pictures[own] * (255 / 16)).round()).unsqueeze(1)
    margin = image_size // 8
    images = pad(resize(grey.to(torch.uint8), image_size - 2 * margin), (margin,) * 4)
    generator = torch.Generator().manual_seed(_DATA_SEED + third)
    if name == "scans":
        images = plain(images)
    elif name == "textured":
        images = inverted_on_texture(images, generator)
    else:
        images = rotated_and_blurred(images, generator)
    domain = ImageSet(images, torch.from_numpy(digits[own]))
    test = torch.arange(_TEST_PICTURES)
    train = torch.arange(_TEST_PICTURES, len(domain))
    return Domain(name, train=domain.select(train), test=domain.select(test))


@lru_cache(maxsize=1)
def _scans() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Read scikit-learn's digits: pictures (1797, 8, 8) from 0 to 16, and classes."""
    # Its file is read without it: importing scikit-learn and SciPy takes most of a second or more.
    package = find_spec("sklearn")
    folders = package.submodule_search_locations if package is not None else None
    file = Path((folders or [""])[0], "datasets", "data", "digits.csv.gz")
    if file.is_file():
        table = np.loadtxt(file, delimiter=",")
        pictures, digits = table[:, :-1], table[:, -1]
    else:
        from sklearn.datasets import load_digits

        pictures, digits = load_digits(return_X_y=True)
    return pictures.reshape(-1, 8, 8), digits.astype(np.int64)
