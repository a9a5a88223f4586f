"""The runs of one command: their threads, the workers that they share, and the command's end.

Whatever ends the command ends its workers and its Ray. Ctrl-C, SIGTERM and SIGHUP do so in order; a
second Ctrl-C, or a kill, without waiting: the kernel takes Ray's processes down with this one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Self

from fedpw_flwr.lab.config.configuration import RuntimeSettings
from fedpw_flwr.lab.simulation.workers import Workers, WorkersStopped

_GRACE_SECONDS = 3.0
"""For a run to finish what it writes, when the command is stopped."""


class Runs:
    """Runs that a command starts, so many at a time; a context manager.

    Leaving it stops what still runs. In the block, which belongs to the main thread, a SIGTERM or
    SIGHUP is a SystemExit, with status 128 + the signal's number.
    """

    def __init__(self) -> None:
        self.stopped = False
        """Whether the command was told to end before its runs had."""
        self._waiting: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._workers: Workers | None = None
        self._using = self._running = 0
        self._free = threading.Condition()
        self._error: BaseException | None = None
        self._handlers = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._handlers.enter_context(_signals_as_exceptions())
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        with self._handlers:
            if error is not None:
                self._stop(error)
            elif self._workers is not None:
                self._workers.close()

    def play(self, runs: Iterable[Callable[[], None]], at_a_time: int = 1) -> None:
        """Let runs run in threads, so many at a time, and wait for all; raises what one raised."""
        for run in runs:
            self._waiting.put(run)
        number = min(at_a_time, self._waiting.qsize())
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(number)]
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            # Without a limit, no signal would be heard meanwhile.
            while thread.is_alive():
                thread.join(0.2)
        if self._error is not None:
            raise self._error

    @contextlib.contextmanager
    def workers(
        self,
        runtime: RuntimeSettings,
        num_clients: int,
        imports: Sequence[str],
        carried: Sequence[str] = (),
    ) -> Iterator[Workers]:
        """Lend the workers to a run: those that are there, where they are what it asks for.

        Others are started when no run uses the ones that are there any more.
        """
        with self._free:
            there = self._workers
            if there is None or not there.serve(runtime, carried):
                self._free.wait_for(lambda: self._using == 0)
                if self.stopped:
                    raise WorkersStopped("the command was stopped")
                if self._workers is not None:
                    self._workers.close()
                self._workers = there = Workers(runtime, num_clients, imports, carried)
            there.grow(num_clients)
            self._using += 1
        try:
            yield there
        finally:
            with self._free:
                self._using -= 1
                self._free.notify_all()

    def last_round_done(self) -> None:
        """Hear from a run that it needs the workers no more: if none does, they begin to end."""
        with self._free:
            if self._running == 1 and self._waiting.empty() and self._workers is not None:
                threading.Thread(target=self._workers.close, daemon=True).start()

    def _work(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                with self._free:
                    run = self._waiting.get_nowait()
                    self._running += 1
                try:
                    run()
                except BaseException as error:
                    self._error = error
                finally:
                    with self._free:
                        self._running -= 1

    def _stop(self, error: BaseException) -> None:
        """End what runs; a second Ctrl-C meanwhile ends the process where it stands."""
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
        self.stopped = True
        with contextlib.suppress(Empty):
            while True:
                self._waiting.get_nowait()
        if self._using:
            logging.getLogger("flwr").error("fedpw: stopped: %s", type(error).__name__)
        if self._workers is not None:
            self._workers.close(error)
        for thread in self._threads:
            thread.join(_GRACE_SECONDS / len(self._threads))


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Let a SIGTERM or SIGHUP unwind the stack, as Ctrl-C does, instead of ending the process."""

    def unwind(signal_number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + signal_number)

    previous = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGHUP)
        # `nohup` ignores the hang-up on purpose.
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    for number in previous:
        signal.signal(number, unwind)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
