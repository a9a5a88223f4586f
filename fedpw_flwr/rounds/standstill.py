"""Rounds in a row that changed nothing: an error at the start of a run, a warning at its end.

A run that loses every round looks like one that works until someone reads its model.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from fedpw_flwr.rounds.faults import BadReply, Project, UnusableRepliesError

logger = logging.getLogger("flwr")

_PATIENCE = 3
"""Rounds from the start of a run that may pass without a usable reply."""

_DIFFERENT = 100
"""Reasons that are told apart."""

_NO_ANSWER = "no reply"
_NO_DATA = "a client without data"

_LONGER = (
    "Where no reply came, read the logs of those nodes. If they need more time, give a longer "
    "timeout: start(timeout=...), under a legacy server ServerConfig(round_timeout=...)"
)


class Standstill:
    """How long the model has not changed, and why; another one begins when it has."""

    def __init__(self) -> None:
        self._rounds = 0
        self._lost = 0
        self._reasons: Counter[str] = Counter()

    def add(
        self,
        phase: str,
        server_round: int,
        bad: Sequence[BadReply],
        silent: int,
        from_start: bool,
        project: Project,
    ) -> None:
        """Take note of a round without a usable reply.

        `UnusableRepliesError` if it is the third from the start in which none could be used.
        """
        self._rounds += 1
        self._lost += silent > 0 or any(reply.fate != "empty" for reply in bad)
        for reason in (*map(_reason, bad), *[_NO_ANSWER] * silent):
            # Clients write what they fail with: no end of texts may pile up here.
            known = reason in self._reasons or len(self._reasons) < _DIFFERENT
            self._reasons[reason if known else "something else"] += 1
        logger.warning(
            "%s: round %s has no reply that can be used; the model stays as it is%s",
            *(phase, server_round),
            f", for {self._rounds} rounds now" if self._rounds > 1 else "",
        )
        if from_start and self._lost >= _PATIENCE:
            told = [
                _LONGER if reason == _NO_ANSWER else project.remedy(reason)
                for reason, _ in self._reasons.most_common()
            ]
            fixes = "\n".join(filter(None, told)) or "The log has each of them, by client"
            raise UnusableRepliesError(
                f"{self._lost} rounds from the start had no reply that can be used, and the model "
                f"is still the initial one. What came: {self._counted()}. {fixes}"
            )

    def log_at_end(self) -> None:
        """Log a warning at the end of a run whose last rounds were lost."""
        if self._rounds:
            logger.warning(
                "The run has ended, and its last %s changed nothing: no reply could be used. What "
                "came: %s",
                "round" if self._rounds == 1 else f"{self._rounds} rounds",
                self._counted(),
            )

    def _counted(self) -> str:
        return "; ".join(f"{count} times {why}" for why, count in self._reasons.most_common(8))


def _reason(reply: BadReply) -> str:
    if reply.fate == "empty":
        return _NO_DATA
    told = reply.kind or (reply.reason.splitlines() or [""])[0][:200]
    return f"a failure ({told})" if reply.fate == "failed" else told
