"""Checkpoints: what a run needs to go on after a round, on disk, whole or not at all."""

from fedpw_flwr.rounds.checkpoints import Checkpoint, CheckpointError, CheckpointStore

__all__ = ["Checkpoint", "CheckpointError", "CheckpointStore"]
