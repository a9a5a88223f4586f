"""``report.html``: a run in the browser while it goes on, on a phone, too, and after it.

Give the observer to the strategy, and open the file::

    FedPW(observers=[HtmlReport("outputs")])

It shows whatever figures the run has. Those of one kind share a chart where their names begin
alike: let `evaluate_fn` return ``MetricRecord({"accuracy/oslo": 0.9, "accuracy/bergen": 0.8})``.
What each client's own evaluation gave is shown, too.
"""

from __future__ import annotations

import json
import logging
import platform
import re
import threading
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from flwr.app import Message, MetricRecord

from fedpw_flwr.files import atomic_file
from fedpw_flwr.report.page import Run, page
from fedpw_flwr.rounds.observers import Observer
from fedpw_flwr.wire.records import identity_of

logger = logging.getLogger("flwr")

_PACKAGES = ("fedpw-flwr", "flwr", "torch", "numpy")
_KEPT = re.compile(r'<script type="application/json">(.*?)</script>', re.DOTALL)
_WHERE = re.compile(r"^\w+: round \d+, ")


class HtmlReport(Observer):
    """Writes ``report.html`` whole after each round; it reloads itself until the run has ended.

    Parameters
    ----------
    folder : str | Path
        Where the file is to be; made if it is missing.
    title : str (default: "Federated run")
        The page's heading.
    groups : Mapping[int, str] | None (default: None)
        What the clients belong to, such as a region, by client id.
    settings : str (default: "")
        Shown as it is; by default the settings of the strategy.

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
        versions = {name: metadata.version(name) for name in _PACKAGES}
        versions = {"python": platform.python_version(), **versions}
        self.path = Path(folder) / "report.html"
        self.run = Run(title, settings, versions, groups or {})
        self._evaluated: dict[int, Mapping[str, Any]] = {}
        self._since = time.monotonic()
        self._goes_on_after = -1
        self._warnings = _Warnings()

    def on_plan(self, num_rounds: int, settings: Mapping[str, Any]) -> None:
        """Keep the number of rounds and the strategy's settings."""
        self.run.total = num_rounds
        told = {name: value for name, value in settings.items() if name != "model"}
        self.run.settings = self.run.settings or json.dumps(told, indent=2, default=str)

    def on_begin(self, after: int | None) -> None:
        """Listen to the log; take over what the page of a run that goes on has beside figures."""
        self._warnings.listen()
        self._since = time.monotonic()
        if after is not None and self.path.is_file():
            self._goes_on_after = after
            found = _KEPT.search(self.path.read_text(encoding="utf-8"))
            kept = json.loads(found[1]) if found else {}
            for name, by_round in kept.items():
                before = {int(n): told for n, told in by_round.items() if int(n) <= after}
                getattr(self.run, name).update(before)

    def on_replies(self, phase: str, server_round: int, replies: Sequence[Message]) -> None:
        """Keep what each client's evaluation gave."""
        if phase == "evaluate":
            contents = [reply for reply in replies if reply.has_content()]
            self._evaluated = {_client(reply): _numbers(reply) for reply in contents}

    def on_evaluation(self, server_round: int, metrics: MetricRecord | None) -> None:
        """Keep those figures of the clients that all of them have."""
        self.run.evaluated[server_round] = {
            f"evaluate/{name}/client_{client}": values[name]
            for name in metrics or ()
            for client, values in self._evaluated.items()
            if name in values
        }
        self._evaluated = {}

    def on_round_end(self, server_round: int, numbers: Mapping[str, float]) -> None:
        """Write the page."""
        self.run.figures[server_round] = numbers
        if server_round <= self._goes_on_after:
            return
        now = time.monotonic()
        self.run.seconds[server_round], self._since = now - self._since, now
        self._write(server_round)

    def on_end(self, stopped: str | None, error: BaseException | None) -> None:
        """Write the page for the last time, with how the run ended."""
        last = max(self.run.figures, default=0)
        self.run.ending = f"Ended after round {last}"
        if stopped is not None:
            self.run.ending = f"Stopped after round {last}: {stopped}"
        if error is not None:
            self.run.failed = True
            self.run.ending = f"Failed after round {last}. {type(error).__name__}: {error}"
        self._write(last)
        self._warnings.leave()

    def _write(self, server_round: int) -> None:
        self.run.notes.setdefault(server_round, []).extend(self._warnings.take())
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.path) as partial:
                partial.write_text(page(self.run), encoding="utf-8")
        except OSError as error:
            # The run is worth more than its page.
            logger.warning("cannot write %s: %s", self.path, error)


class _Warnings(logging.Handler):
    """Hears what Flower's logger warns of in this thread, without round and phase."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._heard: list[str] = []

    def listen(self) -> None:
        self._thread = threading.get_ident()
        logger.addHandler(self)

    def leave(self) -> None:
        logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self._heard.append(_WHERE.sub("", record.getMessage()))

    def take(self) -> list[str]:
        heard, self._heard = self._heard, []
        return heard


def _client(reply: Message) -> int:
    """Return the client id that a reply states, else its node's."""
    node = reply.metadata.src_node_id
    try:
        stated = identity_of(reply.content)
    except ValueError:
        return node
    return node if stated is None else stated


def _numbers(reply: Message) -> dict[str, float]:
    records = reply.content.metric_records.values()
    return {
        name: value
        for metrics in records
        for name, value in metrics.items()
        if isinstance(value, int | float)
    }
