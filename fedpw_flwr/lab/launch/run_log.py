"""Find, in the log of a failed run, the few lines that a person needs.

A failing simulation writes a hundred lines: Flower's own frames, Ray's, an exit code with a link.
What helps is the exception of the app and the place in the app where it was raised.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_START = "Traceback (most recent call last):"
_CAUSE = "The above exception was the direct cause of the following exception:"
_CONTEXT = "During handling of the above exception, another exception occurred:"
_FRAME = re.compile(r'^\s*File "(?P<path>[^"]+)", line (?P<line>\d+), in (?P<function>.+)$')
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:: .*|$)")
_OTHER_LINE = re.compile(r"^(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\s*:|\(\w+ pid=\d+\))")
_GENERIC_DETAILS = (
    "Simulation failed with exception: An error was encountered. Ending simulation.",
    "Simulation failed with exception: Simulation Runtime crashed.",
    "Task failed with unknown error.",
)


@dataclass
class _Traceback:
    frames: list[str] = field(default_factory=list)
    exception: list[str] = field(default_factory=list)
    continues: bool = False
    finished: bool = False


def explain_failure(lines: Sequence[str], details: str, app_folders: Sequence[str]) -> str:
    """Return in a few lines why a run failed.

    These are the root exception of the last chain of tracebacks in the log (without colours) and
    where in one of the app's folders it was raised; without a traceback Flower's status details, or
    the log's last lines where those say nothing.
    """
    chain = _last_chain(lines)
    if chain is None:
        said = details if details and details not in (*_GENERIC_DETAILS, "N/A") else ""
        return said or "\n".join([line for line in lines if line.strip()][-5:])
    root = chain[0]
    shown = list(root.exception)
    where = next(
        (p for frame in reversed(root.frames) if (p := _raised_in(frame, app_folders))), None
    )
    if where is not None:
        shown.append(f"  raised in {where}")
    return "\n".join(shown)


def _last_chain(lines: Sequence[str]) -> list[_Traceback] | None:
    chain: list[_Traceback] = []
    for line in lines:
        current = chain[-1] if chain else None
        # Flower writes some tracebacks behind its "ERROR :" prefix.
        if line.rstrip().endswith(_START):
            if current is not None and current.continues:
                chain.append(_Traceback())
            else:
                chain = [_Traceback()]
        elif current is None:
            continue
        elif line.strip() in (_CAUSE, _CONTEXT):
            current.continues = True
        elif current.exception:
            current.finished |= not line.strip() or _OTHER_LINE.match(line) is not None
            if not current.finished:
                current.exception.append(line)
        elif _FRAME.match(line):
            current.frames.append(line)
        elif _EXCEPTION.match(line):
            current.exception.append(line)
    return [traceback for traceback in chain if traceback.exception] or None


def _raised_in(frame: str, app_folders: Sequence[str]) -> str | None:
    found = _FRAME.match(frame)
    if found is None:
        return None
    for folder in app_folders:
        if folder in found["path"]:
            inside = found["path"].split(folder, 1)[1].lstrip("/")
            return f"{inside}, line {found['line']}, in {found['function']}"
    return None
