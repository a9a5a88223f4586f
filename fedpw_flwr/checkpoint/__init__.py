"""Checkpoints: what a run needs to go on after a round, on disk, whole or not at all."""

from fedpw_flwr.checkpoint.store import Checkpoint, CheckpointError, CheckpointStore

__all__ = ["Checkpoint", "CheckpointError", "CheckpointStore"]
