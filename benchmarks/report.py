"""A benchmark's result: a table that prints itself as Markdown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Measured figures, and in words what was measured.

    A column is aligned to the right where all its filled cells are numbers, else to the left.

    Raises
    ------
    ValueError
        If a row has another number of cells than the header.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """What was measured and how; printed above the figures."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"table {self.title!r} has {len(self.header)} columns, a row has {len(row)} "
                    f"cells: {row}"
                )

    def markdown(self) -> str:
        """Return title, note and figures, without a line break at the end."""
        rules = [
            "--:" if _is_numeric([row[column] for row in self.rows]) else "---"
            for column in range(len(self.header))
        ]
        lines = [_line(self.header), f"|{'|'.join(rules)}|", *map(_line, self.rows)]
        paragraphs = [f"### {self.title}", self.note.strip(), "\n".join(lines)]
        return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _line(cells: tuple[str, ...]) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _is_numeric(cells: list[str]) -> bool:
    filled = [cell for cell in cells if cell]
    return bool(filled) and all(_is_number(cell) for cell in filled)


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "").replace("×", "").strip())
    except ValueError:
        return False
    return True
