"""Text that reaches any terminal or log: signs that its encoding lacks are replaced, not fatal."""

from __future__ import annotations

import io
import sys

__all__ = ["write_any_text"]


def write_any_text() -> None:
    """Let standard output show ``?`` for a sign that it cannot encode, where it would raise."""
    # Standard error never raises: Python writes such signs there as escapes.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
