"""How a client names itself for good: Flower's node ids change from run to run."""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

__all__ = [
    "ANSWERS_KEY",
    "IDENTITY_ACTION",
    "IDENTITY_KEY",
    "IDENTITY_QUERY",
    "IDENTITY_RECORD",
    "identity_of",
    "identity_record",
    "shows_answers",
]

IDENTITY_RECORD, IDENTITY_KEY = "identity", "client-id"
"""ConfigRecord of a reply, and its entry, by which a client names itself for good: an integer."""

ANSWERS_KEY = "answers"
"""Entry beside it: true where the client has a function for the question who it is."""

IDENTITY_ACTION = "fedpw_identity"
IDENTITY_QUERY = f"query.{IDENTITY_ACTION}"
"""Type of the message by which the server asks a node which client it is."""


def identity_record(client_id: int | None) -> RecordDict:
    """Return the records by which a client names itself; none where it has no name."""
    if client_id is None:
        return RecordDict()
    return RecordDict({IDENTITY_RECORD: ConfigRecord({IDENTITY_KEY: client_id})})


def shows_answers(content: RecordDict) -> bool:
    """Return whether a reply shows that its client can be asked who it is."""
    record = content.config_records.get(IDENTITY_RECORD)
    return record is not None and record.get(ANSWERS_KEY) is True


def identity_of(content: RecordDict) -> int | None:
    """Return the identity that records state, None where they state none.

    Raises
    ------
    ValueError
        If what they state is no identity.
    """
    record = content.config_records.get(IDENTITY_RECORD)
    if record is None or IDENTITY_KEY not in record:
        return None
    identity = record[IDENTITY_KEY]
    if isinstance(identity, bool) or not isinstance(identity, int) or identity < 0:
        raise ValueError(f"its {IDENTITY_KEY!r} is {identity!r}, not a non-negative integer")
    return identity
