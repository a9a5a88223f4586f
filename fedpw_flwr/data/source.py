"""What a named domain's pictures come from: a file's reader, a folder of pictures, a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fedpw_flwr.data.images import ImageSet

__all__ = ["Source"]


class Source(Protocol):
    """One kind of place to get a domain from; a dataclass whose ``repr`` tells all that matters.

    **To add one**, write a frozen dataclass with these two methods and name it in
    :mod:`fedpw_flwr.data.named_sets`.
    """

    def files(self) -> Sequence[Path]:
        """Return the files that decide what is read; empty where they are missing."""

    def read(
        self, *, image_size: int, channels: int, num_classes: int
    ) -> tuple[ImageSet, ImageSet]:
        """Return training and test pictures.

        Parameters
        ----------
        image_size : int
            Height and width wanted, in pixels.
        channels : int
            1 or 3.
        num_classes : int
            Labels must lie in ``range(num_classes)``.

        Raises
        ------
        FileNotFoundError
            If the set is missing; the message says what to get and where to put it.
        ValueError
            If it is there, but damaged or of another form.
        """
