"""The pictures of an earlier comparison in a folder, which must not stay beside the new page.

Only what the earlier page shows is known to be its own: other pictures may lie there, such as a
run's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

__all__ = ["pictures_of_page", "remove_pictures"]

_LINK = re.compile(r"^!\[.*\]\((.+\.png)\)$", re.MULTILINE)


def pictures_of_page(page: Path) -> set[Path]:
    """Return the pictures in and below a page's folder that it shows; none where there is no page.

    Parameters
    ----------
    page : Path
        A ``comparison.md``.
    """
    try:
        text = page.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return set()
    folder = page.parent.resolve()
    shown = ((folder / unquote(link)).resolve() for link in _LINK.findall(text))
    return {picture for picture in shown if picture.is_relative_to(folder)}


def remove_pictures(pictures: Iterable[Path], folder: Path) -> None:
    """Remove pictures, and the folders inside `folder` that are empty then."""
    for picture in pictures:
        picture.unlink(missing_ok=True)
        if picture.parent != folder.resolve():
            # Not empty, or gone already.
            with contextlib.suppress(OSError):
                picture.parent.rmdir()
