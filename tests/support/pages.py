"""What the repository's pages show as code, and how their commands are typed.

A page says of a block that no test runs it, and why, by ``<!-- not run: WHY -->`` before it, or
``<!-- not run from here: WHY -->`` before all that are left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from markdown_it import MarkdownIt

from fedpw_flwr.lab.config.configuration import config_folder

REPOSITORY = config_folder().parent
PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
    for pattern in ("*.md", "docs/*.md", "docs/projects/*.md", "examples/*.md", "examples/*/*.md")
    for path in sorted(REPOSITORY.glob(pattern))
}
"""Every page by its path, but tables of figures."""


def shown(page: str) -> Iterator[tuple[str, str, bool]]:
    """Language and text of each block of a page, and whether the page says that it is not run."""
    mark = all_left = False
    for token in MarkdownIt().parse(page):
        if token.type in ("fence", "code_block"):
            yield token.info.strip(), token.content, mark or all_left
        mark = "<!-- not run: " in token.content
        all_left |= "<!-- not run from here: " in token.content


def inline(page: str) -> list[str]:
    """What stands as code within a page's sentences and tables."""
    parsed = MarkdownIt().enable("table").parse(page)
    children = (child for token in parsed for child in token.children or [])
    return [child.content for child in children if child.type == "code_inline"]


def blocks(kind: str, pages: Iterable[str] = PAGES.values(), *, marked: bool = False) -> list[str]:
    """The blocks of a kind that are run; with `marked` those of which a page says they are not."""
    return [
        code
        for page in pages
        for language, code, mark in shown(page)
        if re.fullmatch(kind, language) and mark == marked
    ]


def block(kind: str, word: str) -> str:
    """The only block of a kind that holds a word."""
    (found,) = (code for code in blocks(kind) if word in code)
    return found


def write_files(page: str, folder: Path) -> None:
    """Write the files that a page shows: the first line of their block is their name."""
    for code in blocks("(?:python|yaml)", [PAGES[page]]):
        named = re.match(r"# (\w\S+\.(?:py|yaml))\n", code)
        if named is not None:
            (folder / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / named[1]).write_text(code, encoding="utf-8")


def commands(code: str) -> list[str]:
    """The lines of a block of commands, without what continues them and what remarks on them."""
    lines = re.sub(r"\\\n", " ", code).splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
