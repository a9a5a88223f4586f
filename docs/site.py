"""What the site adds to docs/: pages that stand elsewhere in the repository, and equations.

The pages are Markdown that people read in the repository, too. So a link names a file of the
repository, and an equation stands between dollars; MkDocs calls these functions to show both.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
PAGES = ["*.md", "benchmarks/*.md", "examples/**/README.md", "results/*/comparison.md"]
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)[^)#\s]+")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages outside of docs/; the README's place is taken by docs/index.md."""
    for pattern in PAGES:
        for path in sorted(REPOSITORY.glob(pattern)):
            if path != REPOSITORY / "README.md":
                files.append(_file(path, config))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where the site has the file; one that is no page is added to the site."""
    here = Path(str(page.file.abs_src_path)).parent

    def in_site(link: re.Match[str]) -> str:
        path = (here / link[0]).resolve()
        path = path / "README.md" if path.is_dir() else path
        if path == REPOSITORY / "README.md":
            path = DOCS / "index.md"
        if not path.is_file():
            return link[0]
        name = _name(path)
        if name not in files.src_uris:
            files.append(_file(path, config))
        return posixpath.relpath(name, posixpath.dirname(page.file.src_uri))

    return LINK.sub(in_site, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write equations as MathML, which browsers draw themselves."""
    return EQUATION.sub(_mathml, content)


def _mathml(equation: re.Match[str]) -> str:
    display = "block" if equation[1] == "div" else "inline"
    return convert(html.unescape(equation[2]), display=display)


def _file(path: Path, config: MkDocsConfig) -> File:
    return File.generated(config, _name(path), abs_src_path=str(path))


def _name(path: Path) -> str:
    return path.relative_to(DOCS if DOCS in path.parents else REPOSITORY).as_posix()
