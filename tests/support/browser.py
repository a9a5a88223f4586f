"""A page in headless Chromium: what stands in it, and what its console says."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Shown:
    """The text of a page as the browser has it, the names of its elements, and its console."""

    text: str
    elements: list[str]
    console: list[str]


def shown(page: Path) -> Shown:
    """Open a page; the test is skipped where there is no browser."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    profile = page.parent / ".profile"
    done = subprocess.run(
        [browser, *options, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    shutil.rmtree(profile, ignore_errors=True)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Shown(*text_and_elements(done.stdout), console)


def text_and_elements(page: str) -> tuple[str, list[str]]:
    """The text of a page that people read, with single spaces, and the names of its elements."""
    reader = _Reader()
    reader.feed(page)
    return " ".join(" ".join(reader.texts).split()), reader.elements


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)

    def handle_data(self, data: str) -> None:
        if self.elements[-1:] not in (["script"], ["style"]):
            self.texts.append(data)
