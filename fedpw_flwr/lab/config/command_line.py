"""The words of the command line, before hydra reads them: paths as people write them.

Outside quotes hydra reads ASCII letters, digits and a few signs, and says of any other word only
where it stopped. The shell takes one pair of quotes away, so a path with ``~``, ``=``, a comma or
an umlaut needs two: ``'dataset.folder="~/images"'``. Who forgot them reads what to type.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from fedpw_flwr.lab.config.configuration import ConfigurationError, is_folder, override_key, quoted

_TAKE_A_VALUE = {
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--package", "-p", "--experimental-rerun", "--shell-completion", "-sc"),
}
_CONFIG_DIR = "--config-dir="
_OUTPUT_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")


def readable_words(words: Sequence[str]) -> list[str]:
    """Return the command's arguments with ``~`` replaced where hydra itself makes a folder.

    ConfigurationError if hydra could not read one, or not as one path, with the form to type.
    """
    several = not {"-m", "--multirun"}.isdisjoint(words)
    read = []
    for before, word in zip(["", *words], words, strict=False):
        if before in _TAKE_A_VALUE:
            read.append(word)
        elif word.startswith(f"{_CONFIG_DIR}~"):
            folder = Path(word.removeprefix(_CONFIG_DIR)).expanduser()
            read.append(f"{_CONFIG_DIR}{folder}")
        elif "=" in word and not word.startswith("-"):
            read.append(_readable(word, several))
        else:
            read.append(word)
    return read


def _readable(word: str, several: bool) -> str:
    key, _, value = word.partition("=")
    right = f"{key}={quoted(value)}"
    override = _parsed(word)
    if override is None:
        if value.startswith(("'", '"', "[", "{")) or _parsed(right) is None:
            # No path; hydra says where it stopped.
            return word
        raise ConfigurationError(
            f"{word} cannot be read: a value with other signs than ASCII letters, digits and "
            f"/ - _ . : + % * @ ? | $ needs quotes, and the shell another pair around them. "
            f"Type {shlex.quote(right)}"
        )
    last = override_key(key).rpartition(".")[2]
    is_path = key in (*_OUTPUT_FOLDERS, "resume") or is_folder(last)
    if is_path and override.is_sweep_override() and not several:
        raise ConfigurationError(
            f"{word} reads as several values: a path with a comma needs quotes, and the shell "
            f"another pair around them. Type {shlex.quote(right)}"
        )
    if key in _OUTPUT_FOLDERS and str(override.value()).startswith("~"):
        return f"{key}={quoted(str(Path(str(override.value())).expanduser()))}"
    return word


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None
