"""Flower's Grid over worker processes: who is asked, and what comes back.

The rules are those of Flower's simulation: node ids are drawn by chance, node k holds partition k,
its state lives as long as the run, and a client that raises, dies or is late is an Error message.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from logging import ERROR, INFO
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore import log
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedpw_flwr.lab.simulation.client_process import answer
from fedpw_flwr.lab.simulation.workers import Patience, Workers, WorkersStopped

_RUN, _SERVER = secrets.randbits(62), 1
"""Ids of the run and of the server's node: runs of one process never meet, and share them."""


class WorkersGrid(Grid):
    """The clients of one run, which take turns on the workers of a command.

    The ClientApp, ``module:name``, finds `run_config` in its context. `given` are references in
    Ray's store to functions that a worker calls before its first message.
    """

    def __init__(
        self,
        workers: Workers,
        client_app: str,
        num_clients: int,
        run_config: Mapping[str, Any],
        given: Sequence[Any] = (),
    ) -> None:
        self.workers, self.given = workers, list(given)
        self.on_record: Callable[[Any], None] | None = None
        """Wants to know what the server records of a round."""
        self._client_app = client_app
        self.set_run(Run.create_empty(_RUN))
        nodes = secrets.SystemRandom().sample(range(_SERVER + 1, 2**62), num_clients)
        self._contexts = {
            node: Context(
                _RUN,
                node,
                {"partition-id": partition, "num-partitions": num_clients},
                RecordDict(),
                dict(run_config),
            )
            for partition, node in enumerate(nodes)
        }
        self._asked: dict[str, tuple[Message, Future[Any]]] = {}

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run
        TaskIdentity.run_id = run.run_id
        TaskIdentity.task_id = TaskIdentity.node_id = _SERVER

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Build a message, as `Message` does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes, in the order of their partitions."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages for the workers, and return their ids."""
        return self._push(messages, Patience())

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, each once."""
        done = [one for one in message_ids if one in self._asked and self._asked[one][1].done()]
        return [self._reply(one) for one in done]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Let clients answer, and return their replies in the order of the messages.

        A client that has not answered `timeout` seconds after the first of them began is an Error
        message, and the worker that was busy with it is ended.
        """
        return [self._reply(one) for one in self._push(messages, Patience(timeout or math.inf))]

    def _push(self, messages: Iterable[Message], patience: Patience) -> list[str]:
        return [self._push_one(message, patience) for message in messages]

    def _push_one(self, message: Message, patience: Patience) -> str:
        # As Flower's grids do, on the object that they were given.
        name = message.metadata.__dict__["_message_id"] = str(uuid4())
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            future: Future[Any] = Future()
            future.set_exception(LookupError(f"no node {message.metadata.dst_node_id} is known"))
        else:
            future = self.workers.call(
                answer,
                *(self._client_app, self.given, message, context),
                patience=patience,
                # Who they are, clients tell at once, and other runs' training takes long.
                urgent=message.metadata.message_type.startswith(MessageType.QUERY),
            )
        self._asked[name] = message, future
        return name

    def _reply(self, name: str) -> Message:
        """Wait for the reply to a message, and note what its client wrote."""
        message, future = self._asked.pop(name)
        node = message.metadata.dst_node_id
        reply: Message
        try:
            reply, context, written = future.result()
        except WorkersStopped:
            raise
        except Exception as error:
            late = isinstance(error, TimeoutError)
            code = ErrorCode.REPLY_MESSAGE_UNAVAILABLE if late else ErrorCode.UNKNOWN
            reason = f"{type(error).__name__}: {error}"
            reply = Message(Error(code, reason), reply_to=message)
            log(ERROR, "node %s did not answer: %s", node, reason)
            for words in filter(None, getattr(error, "__notes__", ())):
                log(ERROR, "its worker's last words:\n%s", words)
        else:
            if not reply.has_error():
                self._contexts[node] = context
            if written:
                log(
                    ERROR if reply.has_error() else INFO,
                    "client of partition %s wrote:\n%s",
                    context.node_config["partition-id"],
                    written.rstrip("\n"),
                )
        reply.metadata.__dict__["_message_id"] = str(uuid4())
        return reply
