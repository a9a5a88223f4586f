"""What a worker does about a message: it is the client that the message is for, and then another.

What clients print or log, and what they raise, goes back with the reply, for the run's log.
"""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode


def load_app(reference: str) -> Any:
    """Return the app that ``module:name`` refers to, as in a Flower project's pyproject.toml."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def answer(
    app: str, given: list[Any], message: Message, context: Context
) -> tuple[Message, Context, str]:
    """Let the ClientApp ``module:name`` answer a message, after it was `given` what it needs.

    Returns the reply, an error where the app raised one; the client's context; what was written.
    """
    take(given)
    with _written() as text:
        try:
            reply = load_app(app)(message, context)
            if not isinstance(reply, Message):
                raise TypeError(f"a ClientApp must return a Message, got {type(reply).__name__}")
        except Exception as error:
            traceback.print_exc(file=text)
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
    return reply, context, text.getvalue()


_taken: dict[str, Callable[[], None]] = {}
"""By the names of references: a reference itself would keep what it refers to in Ray's store."""


def take(given: list[Any]) -> None:
    """Call functions in Ray's store, each once a process; `give_back` calls what they return."""
    import ray

    for reference in given:
        if reference.hex() not in _taken:
            _taken[reference.hex()] = ray.get(reference)()


def give_back(names: list[str]) -> None:
    """Let go, when a run has ended, of what its references, by their names, gave this process."""
    for name in names:
        _taken.pop(name, lambda: None)()


@contextlib.contextmanager
def _written() -> Iterator[io.StringIO]:
    """Collect what is printed, and what Flower's logger is told."""
    logger, text = logging.getLogger("flwr"), io.StringIO()
    before = logger.handlers
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.setLevel(logging.INFO)
    logger.handlers = [handler]
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            yield text
    finally:
        logger.handlers = before
