"""Files that are written whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a hidden path beside ``path`` to write to, and rename the file if nothing went wrong.

    A file that is already at ``path`` stays until the new one is complete and on disk.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    try:
        partial.touch(exist_ok=False)
        permissions = partial.stat().st_mode
        yield partial
        # A library may create the file anew, for its owner only; a run is there to be shared.
        partial.chmod(permissions)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
