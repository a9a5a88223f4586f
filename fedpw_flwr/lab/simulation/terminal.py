"""Text that reaches any terminal or log: signs that its encoding lacks are replaced, not fatal."""

from __future__ import annotations

import io
import sys

from rich.console import Console
from rich.markup import escape


def write_any_text() -> None:
    """Let standard output show ``?`` for a sign that it cannot encode, where it would raise."""
    # Standard error never raises: Python writes such signs there as escapes.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def say(text: str, style: str = "bold red", console: Console | None = None) -> None:
    """Write, on standard error if not told otherwise, what is wrong or to be known."""
    console = Console(stderr=True) if console is None else console
    console.print(f"[{style}]fedpw:[/] {escape(text)}", highlight=False, soft_wrap=True)
