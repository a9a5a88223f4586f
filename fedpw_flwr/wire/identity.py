"""How a client names itself for good: Flower's node ids change from run to run."""

from __future__ import annotations

__all__ = ["IDENTITY_KEY", "IDENTITY_RECORD"]

IDENTITY_RECORD, IDENTITY_KEY = "identity", "client-id"
"""ConfigRecord of a reply, and its entry, by which a client names itself for good: an integer."""
