"""The phases of a round by name, as they are measured, recorded and drawn."""

from __future__ import annotations

__all__ = ["CLIENT_PHASES", "IDLE", "SERVER_PHASES"]

SERVER_PHASES = (
    "configure",
    "send",
    "clients",
    "collect",
    "aggregate",
    "client_evaluation",
    "evaluate",
    "other",
)
"""In the order in which they follow each other: the strategy prepares the messages; they travel to
the first client; clients are at work; the last reply travels back; the strategy aggregates; clients
evaluate, where the strategy asks them to; the server evaluates the global model; the rest (saving
models, logs)."""

CLIENT_PHASES = ("set_up", "download", "train", "adjust", "evaluate", "upload")
"""What a client does about a message: build itself (its data and model the first time), decode the
message, train, mask, rescale and pack the update, evaluate, encode the reply."""

IDLE = "idle"
"""What a worker does while it does none of `CLIENT_PHASES`."""
