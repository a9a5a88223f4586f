"""What the site adds to docs/: pages that stand elsewhere in the repository, and equations.

The pages are Markdown that people read in the repository, too. So a link names a file of the
repository, and an equation stands between dollars; MkDocs calls these functions to show both.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path

from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
PENS = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)[^)#\s]+")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages of the repository that others lead to; docs/index.md stands for the README."""
    pages = [*DOCS.rglob("*.md"), *sorted(REPOSITORY.glob("*.md"))]
    pages.remove(REPOSITORY / "README.md")
    for page in pages:
        if _name(page) not in files.src_uris:
            files.append(_file(page, config))
        named = [_named(link, page) for link in LINK.findall(page.read_text(encoding="utf-8"))]
        pages += [path for path in named if path and path.suffix == ".md" and path not in pages]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where the site has the file; one that is no page is added to the site."""
    if page.file.src_uri.startswith("results/"):
        page.meta["search"] = {"exclude": True}

    def in_site(link: re.Match[str]) -> str:
        path = _named(link[0], Path(str(page.file.abs_src_path)))
        if path is None:
            return link[0]
        if _name(path) not in files.src_uris:
            files.append(_file(path, config))
        return posixpath.relpath(_name(path), posixpath.dirname(page.file.src_uri))

    return LINK.sub(in_site, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw equations, which browsers without a font for mathematics would not."""
    return EQUATION.sub(_drawn, content)


def _drawn(equation: re.Match[str]) -> str:
    """Return an equation as SVG; in a line of text fractions are small, and sums have no limits."""
    element, tex = equation[1], " ".join(html.unescape(equation[2]).split())
    in_line = element == "span"
    drawn = re.sub(r"\\sum_(\w)", r"{\\sum}_\1\\," if in_line else r"\\sum_\1\\,", tex)
    drawn = f"${drawn if in_line else drawn.replace('frac', 'dfrac')}$"
    look = FontProperties(math_fontfamily="cm")
    width, height, depth, *_ = MathTextParser("path").parse(drawn, 72, look)
    path = "".join(
        PENS[code] + " ".join(f"{place:.2f}" for place in places) if code in PENS else "Z"
        for places, code in TextPath((0, 0), drawn, prop=look).iter_segments()
    )
    size = 0.87 * look.get_size_in_points()  # the font is smaller than the text's of one size
    return (
        f'<{element} class="equation"><svg role="img" aria-label="{html.escape(tex)}" '
        f'style="width:{width / size:.2f}em;height:{height / size:.2f}em;'
        f'vertical-align:{-depth / size:.2f}em" viewBox="0 {depth - height} {width} {height}">'
        f'<path transform="scale(1 -1)" d="{path}"/></svg></{element}>'
    )


def _named(link: str, page: Path) -> Path | None:
    """Return the file that a page's link names, of a folder its README; None where it is none."""
    path = (page.parent / link).resolve()
    path = path / "README.md" if path.is_dir() else path
    if path == REPOSITORY / "README.md":
        return DOCS / "index.md"
    return path if path.is_file() and REPOSITORY in path.parents else None


def _file(path: Path, config: MkDocsConfig) -> File:
    return File.generated(config, _name(path), abs_src_path=str(path))


def _name(path: Path) -> str:
    return path.relative_to(DOCS if DOCS in path.parents else REPOSITORY).as_posix()
