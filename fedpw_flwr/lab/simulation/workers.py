"""Worker processes that do one thing at a time, each replaced when it dies or hangs.

Clients, and whatever else can be done beside the server, are calls of functions: `Workers.call`
queues one and returns its future. Each worker is a Ray actor with a thread here that feeds it.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, PriorityQueue
from typing import Any

from fedpw_flwr.lab.config.configuration import RuntimeSettings
from fedpw_flwr.lab.simulation.ray_processes import room_for_clients, start_ray, stop_ray

_LOOK_SECONDS, _RETRY_SECONDS = 0.2, 2.0
_LINES = 20  # of a worker that died
_RESERVED = ("cpus_per_client", "gpus_per_client", "total_cpus", "ray_address", "niceness")


class WorkersStopped(RuntimeError):
    """There are no workers (any more): the message says why."""


class Patience:
    """So many seconds, from the moment when the first of some calls begins."""

    def __init__(self, seconds: float = math.inf) -> None:
        self._seconds = seconds
        self._end: float | None = None

    def left(self) -> float:
        """Return how much of it is left; the first time, all."""
        if self._end is None:
            self._end = time.monotonic() + self._seconds
        return self._end - time.monotonic()


@dataclass(order=True)
class _Task:
    later: bool
    number: int
    function: Callable[..., Any] = field(compare=False)
    arguments: tuple[Any, ...] = field(compare=False)
    patience: Patience = field(compare=False)
    future: Future[Any] = field(compare=False)


class ClientWorker:
    """What a worker process holds: nothing but what its calls leave in its modules.

    It imports from `path`, where that is given: Ray would look into the current folder first.
    """

    def __init__(self, path: list[str] | None, modules: Sequence[str]) -> None:
        if path is not None:
            sys.path[:] = path
        for module in modules:
            importlib.import_module(module)

    def started(self) -> int:
        """Return, once the worker exists, the number of its process."""
        return os.getpid()

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function."""
        return function(*arguments)


class Workers:
    """The workers of a command, started at once in the background.

    There are `at_most` so many, fewer where there is no room. Each `imports` modules when it
    starts, so that the first call does not wait; a cluster's machines are `carried` files and
    folders of modules.
    """

    def __init__(
        self,
        runtime: RuntimeSettings,
        at_most: int,
        imports: Sequence[str],
        carried: Sequence[str] = (),
    ) -> None:
        self.runtime = runtime
        self._at_most, self._imports, self._carried = at_most, imports, carried
        self._tasks: PriorityQueue[_Task] = PriorityQueue()
        self._numbers = itertools.count()
        self._told: list[tuple[Any, ...]] = []
        self._started = threading.Event()
        self._closing = threading.Event()
        self._room = 0
        self._folder: Path | None = None
        self._feeders: list[threading.Thread] = []
        self._alive: list[Any] = []
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._holder = threading.Thread(target=self._hold, name="fedpw-ray", daemon=True)
        self._holder.start()

    def wait(self) -> int:
        """Wait until Ray has room for the workers, and return their number.

        WorkersStopped or ConfigurationError if there can be none.
        """
        self._started.wait()
        if self._error is not None:
            raise self._error
        return len(self._feeders)

    def put(self, value: Any) -> Any:
        """Store what several calls need once, and return what stands for it in their arguments."""
        import ray

        self.wait()
        return ray.put(value)

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        patience: Patience | None = None,
        urgent: bool = False,
    ) -> Future[Any]:
        """Let the next free worker call a function; an urgent call goes before those that wait.

        The future raises what the function raises, TimeoutError where the patience ends, and Ray's
        errors where the worker dies.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._error is not None:
                future.set_exception(self._error)
                return future
            patience = Patience() if patience is None else patience
            number = next(self._numbers)
            self._tasks.put(_Task(not urgent, number, function, arguments, patience, future))
        return future

    def tell(self, function: Callable[..., None], *arguments: Any) -> None:
        """Let every worker call a function before its next task."""
        self._told.append((function, *arguments))

    def serve(self, runtime: RuntimeSettings, carried: Sequence[str]) -> bool:
        """Return whether they are what another run's settings ask for."""
        mine, theirs = (
            [getattr(one, name) for name in _RESERVED] for one in (self.runtime, runtime)
        )
        return self._error is None and (mine, self._carried) == (theirs, carried)

    def grow(self, at_most: int) -> None:
        """Start more workers where there is work for so many, and room."""
        with self._lock:
            self._at_most = max(self._at_most, at_most)
        if self._started.is_set():
            self._fill()

    def close(self, error: BaseException | None = None) -> None:
        """End all workers and, where it is the command's own, Ray.

        What was called and is not done raises WorkersStopped, from the error if there is one.
        """
        reason = "it ended" if error is None else type(error).__name__
        stopped = WorkersStopped(f"the run was stopped: {reason}")
        stopped.__cause__ = error
        self._fail(stopped)
        self._closing.set()
        self._holder.join()

    def _hold(self) -> None:
        """Start Ray and the workers, and end them when it is time."""
        try:
            import ray

            held = start_ray(self.runtime, self._carried)
        except BaseException as error:
            self._fail(error)
            self._started.set()
            return
        try:
            self._folder = None if held is None else Path(held.lock_file).parent
            self._room = room_for_clients(self.runtime)
            self._fill()
        except BaseException as error:
            self._fail(error)
        self._started.set()
        self._closing.wait()
        # Who waits for a worker must not when Ray goes.
        with self._lock:
            alive = list(self._alive)
        for worker in alive:
            ray.kill(worker)
        for feeder in self._feeders:
            feeder.join()
        stop_ray(held)

    def _fill(self) -> None:
        """Start as many workers as there is work and room for."""
        with self._lock:
            while len(self._feeders) < min(self._room, self._at_most):
                self._feeders.append(threading.Thread(target=self._serve, daemon=True))
                self._feeders[-1].start()

    def _serve(self) -> None:
        """Feed one worker, and the next one where it is lost."""
        while self._error is None:
            told = len(self._told)
            worker, process = self._new_worker()
            if worker is None:
                self._closing.wait(_RETRY_SECONDS)
                continue
            with self._lock:
                self._alive.append(worker)
            lives = True
            while lives and not self._closing.is_set():
                try:
                    task = self._tasks.get(timeout=_LOOK_SECONDS)
                except Empty:
                    continue
                for news in self._told[told:]:
                    # An actor does what it is asked in order.
                    worker.do.remote(*news)
                told = len(self._told)
                lives = self._do(worker, process, task)
            with self._lock:
                self._alive.remove(worker)

    def _new_worker(self) -> tuple[Any, int]:
        """Start a worker; None where it cannot be started, which ends all if there is no other."""
        import ray
        from ray.exceptions import RayError

        # With the class itself, for its module is not to be imported before the path is set.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
        kind: Any = ray.remote(ClientWorker)
        runtime, own = self.runtime, self.runtime.ray_address is None
        reserved = {"num_cpus": runtime.cpus_per_client, "num_gpus": runtime.gpus_per_client}
        try:
            worker = kind.options(**reserved).remote(sys.path if own else None, self._imports)
            started = worker.started.remote()
            # On a cluster, other runs may hold what it needs.
            patience = Patience(runtime.connect_timeout if own else math.inf)
            while not ray.wait([started], timeout=_LOOK_SECONDS)[0]:
                if patience.left() <= 0:
                    raise WorkersStopped(f"none in {runtime.connect_timeout:g} s")
                if not any(node["Alive"] for node in ray.nodes()):  # type: ignore[no-untyped-call]
                    raise WorkersStopped("Ray itself has ended")
                if self._closing.is_set():
                    return None, 0
            return worker, ray.get(started)
        except (RayError, ValueError, WorkersStopped) as error:
            if not self._alive:
                self._fail(WorkersStopped(f"no worker process could be started: {error}"))
            return None, 0

    def _do(self, worker: Any, process: int, task: _Task) -> bool:
        """Let a worker do a task; return whether it can do another."""
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        left = task.patience.left()
        error: BaseException
        lives = True
        try:
            if left <= 0:
                raise TimeoutError("no worker was free in time")
            do = worker.do.options(name=task.function.__name__)
            reference = do.remote(task.function, *task.arguments)
            result = ray.get(reference, timeout=None if left == math.inf else left)
        except RayTaskError as raised:
            error = raised.cause if raised.cause is not None else raised
        except GetTimeoutError:
            error, lives = TimeoutError("it had not answered in time"), False
        except RayError as died:
            died.add_note(self._last_words(process))
            error, lives = self._error or died, False
        except BaseException as raised:
            error = self._error or raised
        else:
            task.future.set_result(result)
            return True
        if not lives:
            # Whatever keeps it busy, or out of reach, is of no use to anybody.
            ray.kill(worker)
        task.future.set_exception(error)
        return lives

    def _last_words(self, process: int) -> str:
        """Return the end of what a worker of the own Ray wrote as an error."""
        if self._folder is None:
            return ""
        files = self._folder.glob(f"session_latest/logs/worker-*-{process}.err")
        lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
        return "\n".join(lines[-_LINES:])

    def _fail(self, error: BaseException) -> None:
        """Let every call that waits, and every later one, raise an error."""
        with self._lock, contextlib.suppress(Empty):
            self._error = self._error or error
            while True:
                self._tasks.get_nowait().future.set_exception(self._error)
