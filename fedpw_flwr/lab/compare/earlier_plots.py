"""The plots of an earlier comparison in a folder, which must not stay beside the new page.

Only what the earlier page shows is known to be its own: other plots may lie there, such as a
run's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

__all__ = ["plots_of_page", "remove_plots"]

_LINK = re.compile(r"^!\[.*\]\((.+\.png)\)$", re.MULTILINE)


def plots_of_page(page: Path) -> set[Path]:
    """Return the plots in and below a page's folder that it shows; none where there is no page.

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
    return {plot for plot in shown if plot.is_relative_to(folder)}


def remove_plots(plots: Iterable[Path], folder: Path) -> None:
    """Remove plots, and the folders inside `folder` that are empty then."""
    for plot in plots:
        plot.unlink(missing_ok=True)
        if plot.parent != folder.resolve():
            # Not empty, or gone already.
            with contextlib.suppress(OSError):
                plot.parent.rmdir()
