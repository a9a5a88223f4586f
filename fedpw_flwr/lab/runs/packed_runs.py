"""Runs in one compressed tar file: the folders of many runs, where they are to be kept for long.

Use `pack_runs` to keep the figures of many finished runs in one file, without their models, and
`packed_runs` to read them as if each lay in a folder of its own. ``fedpw-compare`` takes such a
file in place of a folder. ``tar -xf`` makes the folders again, ``xzcat`` shows the text, and a file
that ``tar`` made is as good.
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from fedpw_flwr.files import atomic_file
from fedpw_flwr.lab.runs.run_folder import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    FAILURE_FILE,
    METRICS_FILE,
    PARTITION_FILE,
    SUMMARY_FILE,
    RunFolder,
    RunFolderError,
)

PACKED_FILES = (METRICS_FILE, PARTITION_FILE, CONFIG_FILE, FAILURE_FILE, SUMMARY_FILE)
"""Of a run, in the order in which they are packed; one that has a summary has all it will have."""


@dataclass(frozen=True, eq=False)
class PackedRun(RunFolder):
    """A run whose files are in memory, not on disk; it can be read, and not written to.

    Its path is where its folder would be.
    """

    files: Mapping[str, bytes]
    finished_at: float = 0.0

    def has(self, name: str) -> bool:
        """Tell whether a file was packed."""
        return name in self.files

    def content(self, name: str) -> bytes:
        """Return what a file holds; FileNotFoundError if it was not packed."""
        if name not in self.files:
            raise FileNotFoundError(f"{self.path / name} was not packed")
        return self.files[name]

    def _check_is_run(self) -> None:
        """No folder to look for: what is missing is said where it is read."""


def packed_runs(path: Path) -> list[PackedRun]:
    """Read a tar file of runs' folders, compressed in any way that Python knows.

    Runs have the paths that they would have if the file had been unpacked beside itself. Files
    that are not a run's figures are skipped, and so are folders named ``checkpoints`` and hidden
    ones. RunFolderError if the file is missing, damaged, or no tar file.
    """
    files: dict[PurePosixPath, dict[str, bytes]] = {}
    modified: dict[PurePosixPath, float] = {}
    try:
        with tarfile.open(path) as stream:
            for member in stream:
                file = PurePosixPath(member.name)
                folder = file.parent
                hidden = any(
                    part.startswith(".") or part == CHECKPOINTS_FOLDER for part in folder.parts
                )
                content = stream.extractfile(member) if file.name in PACKED_FILES else None
                if content is None or hidden:
                    continue
                files.setdefault(folder, {})[file.name] = content.read()
                if file.name == SUMMARY_FILE:
                    modified[folder] = float(member.mtime)
            # At a header that is cut or damaged, the loop ends as at the end of the file.
            raw: Any = stream.fileobj
            raw.seek(stream.offset)
            if raw.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends early")
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise RunFolderError(
            f"{path} cannot be read as a tar file of runs ({error}): give a folder of runs, or a "
            "file that tar can list"
        ) from error
    return [
        PackedRun(path.parent / folder, content, modified.get(folder, 0.0))
        for folder, content in files.items()
    ]


def pack_runs(path: Path, runs: Iterable[RunFolder]) -> None:
    """Write a tar file of runs, compressed by xz; the same runs give the same bytes.

    A file that is at ``path`` stays until the new one is complete. The folders in it are named
    after it: ``runs/NAME`` in ``runs.tar.xz``. Of two runs with one name, the later is packed.
    """
    by_name = {run.path.name: run for run in runs}
    above = path.name.split(".")[0]
    with atomic_file(path) as partial, tarfile.open(partial, "w:xz", preset=9) as stream:
        for name, run in sorted(by_name.items()):
            for file in filter(run.has, PACKED_FILES):
                content = run.content(file)
                # Nothing but name and content: no date, and no owner.
                member = tarfile.TarInfo(f"{above}/{name}/{file}")
                member.size = len(content)
                stream.addfile(member, BytesIO(content))
