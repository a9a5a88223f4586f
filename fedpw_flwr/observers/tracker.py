"""When you follow many runs side by side: their figures in the tracker that your group uses."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from fedpw_flwr.rounds.observers import Observer

logger = logging.getLogger("flwr")


class Tracker(Observer, ABC):
    """Gives a library, which has to be installed, the figures of every round.

    Where it fails, a warning says so once, and the run goes on without it. A run that goes on stays
    the same run of the tracker's; one that was not tracked before is, from its first round.

    Parameters
    ----------
    folder : Path | str
        The run's own folder; the tracker's run has its name.
    settings : Mapping[str, Any] | None (default: None)
        What the run was asked to do, for trackers that show it.
    project : str (default: "fedpw")
        Where the tracker puts it: MLflow's experiment, W&B's project.
    """

    library: ClassVar[str]
    """What is imported; the extra that installs it has the same name."""

    def __init__(
        self,
        folder: Path | str,
        settings: Mapping[str, Any] | None = None,
        project: str = "fedpw",
    ) -> None:
        if find_spec(self.library) is None:
            extra = f'pip install "fedpw-flwr[{self.library}]"'
            raise ImportError(f"{type(self).__name__} needs {self.library}: {extra}")
        self.folder, self.settings, self.project = Path(folder).absolute(), settings or {}, project
        self._tracked, self._failed = -1, False

    @abstractmethod
    def open(self, known: str | None, after: int | None) -> str:
        """Begin a run, or go on with the `known` one after a round; return what it is known by."""

    @abstractmethod
    def write(self, server_round: int, numbers: Mapping[str, float]) -> None:
        """Write the figures of a round."""

    @abstractmethod
    def close(self, stopped: str | None, error: BaseException | None) -> None:
        """End the run, as `on_end` heard it."""

    def on_begin(self, after: int | None) -> None:
        """Begin, or go on with the run that a file in the folder names."""

        def begin() -> None:
            kept = self.folder / f"{self.library}-run.txt"
            known = kept.read_text() if after is not None and kept.exists() else None
            self._tracked = -1 if known is None or after is None else after
            self.folder.mkdir(parents=True, exist_ok=True)
            kept.write_text(self.open(known, after))

        self._failed = False
        self._try(begin)

    def on_round_end(self, server_round: int, numbers: Mapping[str, float]) -> None:
        """Write a round that the tracker does not have yet."""
        if server_round > self._tracked:
            self._try(lambda: self.write(server_round, numbers))

    def on_end(self, stopped: str | None, error: BaseException | None) -> None:
        """End the tracker's run."""
        self._try(lambda: self.close(stopped, error))

    def _try(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:
            # Whatever a library raises, the run is worth more.
            self._failed = True
            logger.warning(
                "%s failed, and the run goes on without it: %s: %s",
                *(type(self).__name__, type(error).__name__, error),
            )
