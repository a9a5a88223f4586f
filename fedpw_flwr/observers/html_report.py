"""``report.html``: a run in the browser while it goes on, on a phone, too, and after it.

Give the observer to the strategy, and open the file::

    FedPW(observers=[HtmlReport("outputs")])

It shows whatever figures the run has, also those of each client's own evaluation. Figures of one
kind share a chart where their names begin alike: let `evaluate_fn` return
``MetricRecord({"accuracy/oslo": 0.9, "accuracy/bergen": 0.8})``.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from flwr.app import Message, MetricRecord

from fedpw_flwr import __version__
from fedpw_flwr.files import atomic_file
from fedpw_flwr.report.page import Run, page
from fedpw_flwr.rounds.attendance import WAITING
from fedpw_flwr.rounds.observers import Observer, was_interrupted
from fedpw_flwr.wire.records import client_of

logger = logging.getLogger("flwr")

_MOST_NOTES = 200
_KEPT = re.compile(r'<script type="application/json">(\{"evaluated".*?)</script>', re.DOTALL)
_PHASE_AND_ROUND = re.compile(r"^[a-z]+_([a-z]+): round \d+, ")


class HtmlReport(Observer):
    """Writes ``report.html`` after each round, whole or not at all.

    Parameters
    ----------
    folder : str | Path
        Where the file is to be; made if it is missing.
    title : str (default: "Federated run")
        The page's heading.
    groups : Mapping[int, str] | None (default: None)
        What clients belong to, such as a region, by client id.
    settings : str (default: "")
        Shown as it is; the strategy's settings if empty.

    Raises
    ------
    ModuleNotFoundError
        If Jinja2 is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        title: str = "Federated run",
        groups: Mapping[int, str] | None = None,
        settings: str = "",
    ) -> None:
        try:
            import jinja2  # noqa: F401
        except ModuleNotFoundError as error:
            error.add_note('HtmlReport needs Jinja2: pip install "fedpw-flwr[report]"')
            raise
        versions = {name: metadata.version(name) for name in ("flwr", "torch", "numpy")}
        versions |= {"fedpw-flwr": __version__, "python": platform.python_version()}
        self.path = Path(folder) / "report.html"
        self.run = Run(title, settings, versions, groups or {})
        self._evaluated: dict[int, dict[str, float]] = {}
        self._warnings = _Warnings(self._wait)
        self._since, self._after = time.monotonic(), -1

    def on_plan(self, num_rounds: int, settings: Mapping[str, Any]) -> None:
        """Keep the number of rounds, and the settings."""
        self.run.total = num_rounds
        told = {name: value for name, value in settings.items() if name != "model"}
        self.run.settings = self.run.settings or json.dumps(told, indent=2, default=str)

    def on_begin(self, after: int | None) -> None:
        """Begin, or take from the page of a run that goes on what no observer is told again."""
        run = self.run
        self.run = Run(run.title, run.settings, run.versions, run.groups, run.total)
        self._since, self._after = time.monotonic(), -1 if after is None else after
        self._warnings = _Warnings(self._wait)
        logger.addHandler(self._warnings)
        if after is not None:
            kept = self._kept()
            self.run.evaluated = {int(number): each for number, each in kept["evaluated"].items()}
            self.run.notes = [(number, text) for number, text in kept["notes"] if number <= after]

    def _kept(self) -> Any:
        """Return what the page keeps for a run that goes on; nothing of a page that is not ours."""
        found = None
        if self.path.is_file():
            found = _KEPT.search(self.path.read_text(encoding="utf-8", errors="replace"))
        nothing: dict[str, Any] = {"evaluated": {}, "notes": []}
        with suppress(json.JSONDecodeError):
            return {**nothing, **json.loads(found[1])} if found else nothing
        return nothing

    def _wait(self, text: str) -> None:
        """Say at once that clients are waited for, or with an empty text that they have come."""
        self.run.waiting = text
        self._write()

    def on_replies(self, phase: str, server_round: int, replies: Sequence[Message]) -> None:
        """Keep what each client's evaluation gave; of two in one client's name, neither."""
        answers = [reply for reply in replies if phase == "evaluate" and reply.has_content()]
        speak = Counter(map(client_of, answers))
        self._evaluated = {
            client: _numbers(answer)
            for answer in answers
            if speak[client := client_of(answer)] == 1
        }

    def on_evaluation(self, server_round: int, metrics: MetricRecord | None) -> None:
        """Choose of each client's figures those that the strategy averaged."""
        self.run.evaluated[server_round] = {
            # The page has three digits of them, and each round's stay in it.
            f"clients' {name.replace('/', ' ')}/client_{client}": float(f"{numbers[name]:.6g}")
            for name in metrics or {}
            for client, numbers in self._evaluated.items()
            if name in numbers
        }

    def on_round_end(self, server_round: int, numbers: Mapping[str, float]) -> None:
        """Write the page, but for rounds before a run went on."""
        self.run.add(server_round, {**numbers, **self.run.evaluated.get(server_round, {})})
        if server_round > self._after:
            now = time.monotonic()
            if server_round > 0:
                self.run.seconds.append(now - self._since)
            self._since = now
            self._write_round()

    def on_end(self, stopped: str | None, error: BaseException | None) -> None:
        """Write for the last time, with how the run ended."""
        self.run.waiting = ""
        last = self.run.last
        self.run.ending = f"Ended after round {last}"
        if stopped is not None:
            self.run.ending = f"Stopped after round {last}: {stopped}"
        if was_interrupted(error):
            self.run.ending = f"Interrupted after round {last}"
        elif error is not None:
            self.run.failed = True
            self.run.ending = f"Failed after round {last}, {type(error).__name__}: {error}"
        self._write_round()
        logger.removeHandler(self._warnings)

    def _write_round(self) -> None:
        """Write the page with what was warned of up to the end of this round."""
        self.run.notes += ((self.run.last, text) for text in self._warnings.heard)
        del self.run.notes[:-_MOST_NOTES]
        self._warnings.heard.clear()
        self._write()

    def _write(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.path) as partial:
                partial.write_text(page(self.run), encoding="utf-8")
        except Exception as error:
            # The run is worth more than its page.
            logger.warning("%s could not be written: %r", self.path, error)


class _Warnings(logging.Handler):
    """Hears what Flower's logger warns of in this thread, without the round, and who is awaited."""

    def __init__(self, wait: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self.heard: list[str] = []
        self._wait = wait
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread != self._thread:
            return
        waiting = getattr(record, WAITING, None)
        if waiting is not None:
            self._wait(record.getMessage() if waiting else "")
        if record.levelno >= logging.WARNING:
            self.heard.append(_PHASE_AND_ROUND.sub(r"\1: ", record.getMessage()))


def _numbers(reply: Message) -> dict[str, float]:
    return {
        name: float(value)
        for metrics in reply.content.metric_records.values()
        for name, value in metrics.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
