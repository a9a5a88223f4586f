"""One run: a ServerApp in this process, its clients on workers, its log, and how it ended."""

from __future__ import annotations

import logging
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import fedpw_flwr
from fedpw_flwr.lab.simulation.workers import Workers, WorkersStopped

LOG_NAME = "flower.log"

_LIBRARIES = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
_PACKAGE = str(Path(fedpw_flwr.__file__).parent)


@dataclass(frozen=True)
class App:
    """A Flower app: references ``module:name``, the number of nodes, and the run configuration."""

    server: str
    client: str
    num_clients: int
    run_config: Mapping[str, Any]


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended, after how many seconds; `error` says in a few lines what went wrong."""

    error: str
    log_file: Path
    seconds: float

    @property
    def completed(self) -> bool:
        """Whether nothing went wrong."""
        return self.error == ""


def run_app(
    app: App,
    workers: Workers,
    folder: Path,
    prepare: Callable[[], list[Any]] = list,
    on_record: Callable[[Any], None] | None = None,
) -> RunOutcome:
    """Run an app once and wait for it; a failed run is an outcome, not an exception.

    ``flower.log`` goes into `folder`. `prepare` is called first, while the workers start; what it
    returns is given to them before their first message, and what it raises is raised. `on_record`
    is there for the server to tell of its rounds.
    """
    from flwr.app import Context, RecordDict

    begun, error = time.monotonic(), ""
    with _Log(folder / LOG_NAME) as log:
        given = prepare()
        folder.mkdir(parents=True, exist_ok=True)
        log.attach()
        # What they import, PyTorch, is there by now.
        from fedpw_flwr.lab.simulation.client_process import give_back, load_app
        from fedpw_flwr.lab.simulation.grid import WorkersGrid

        stored: list[Any] = []
        try:
            stored += [workers.put(one) for one in given]
            grid = WorkersGrid(workers, app.client, app.num_clients, app.run_config, stored)
            grid.on_record = on_record
            context = Context(grid.run.run_id, 0, {}, RecordDict(), dict(app.run_config))
            load_app(app.server)(grid, context)
        except WorkersStopped as stopped:
            error = str(stopped)
        except (Exception, SystemExit) as raised:
            _flower.exception("the run failed")
            error = explained(raised)
        finally:
            workers.tell(give_back, [reference.hex() for reference in stored])
        _flower.info("fedpw: %s", error or "the run completed")
    return RunOutcome(error, folder / LOG_NAME, time.monotonic() - begun)


_flower = logging.getLogger("flwr")


class _Log(logging.FileHandler):
    """What Flower's logger hears in this thread, in a file, and nowhere else.

    Before it is attached, what the thread says is dropped.
    """

    _others: ClassVar[list[logging.Handler]] = []
    """The logger's handlers when no run logs."""
    _threads: ClassVar[set[int]] = set()
    """All threads that run an app at the moment."""
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, file: Path) -> None:
        super().__init__(file, encoding="utf-8", delay=True, errors="backslashreplace")
        self.setLevel(logging.INFO)
        self._thread = threading.get_ident()

    def __enter__(self) -> Self:
        with self._guard:
            if not self._threads:
                type(self)._others, _flower.handlers = _flower.handlers, [logging.NullHandler()]
                _flower.propagate = False
            self._threads.add(self._thread)
        return self

    def attach(self) -> None:
        """Begin to write."""
        _flower.addHandler(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Take what no other run says."""
        return record.thread == self._thread or record.thread not in self._threads

    def format(self, record: logging.LogRecord) -> str:
        """Write a line as Flower does, without colours."""
        return f"{record.levelname:<8}: {super().format(record)}"

    def __exit__(self, *exception: object) -> None:
        with self._guard:
            _flower.removeHandler(self)
            self._threads.discard(self._thread)
            if not self._threads:
                _flower.handlers, _flower.propagate = type(self)._others, True
        self.close()


def explained(error: BaseException) -> str:
    """Return what was raised first, and where in the code of the package or of its user."""
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = cause
    said = traceback.format_exception_only(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not is_library(frame.filename)]
    if own:
        last = own[-1]
        said.append(f"  raised in {last.filename}, line {last.lineno}, in {last.name}\n")
    return "".join(said).rstrip("\n")


def is_library(file: str) -> bool:
    """Return whether a file is of Python or an installed package, and not of this one."""
    return not file.startswith(_PACKAGE) and any(file.startswith(str(one)) for one in _LIBRARIES)
