"""``comparison.html``: the page ``comparison.md`` as one file, with its plots in it."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markupsafe import Markup

from fedpw_flwr.files import atomic_file
from fedpw_flwr.report.page import template


def write_html(markdown: Path) -> Path:
    """Write the page beside its Markdown, and return its path; tags in the text stay text."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(markdown.read_text(encoding="utf-8"))
    for token in tokens:
        for part in token.children or ():
            if part.type == "image":
                plot = (markdown.parent / unquote(str(part.attrs["src"]))).read_bytes()
                part.attrs["src"] = f"data:image/png;base64,{base64.b64encode(plot).decode()}"
    body = reader.renderer.render(tokens, reader.options, {})
    # On a phone, a wide table scrolls within its frame.
    body = body.replace("<table>", '<div class="scroll"><table>').replace(
        "</table>", "</table></div>"
    )
    page = template("base.html").render(
        title=tokens[1].content, refresh=None, body=Markup(f'<main class="card">{body}</main>')
    )
    path = markdown.with_suffix(".html")
    with atomic_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path
