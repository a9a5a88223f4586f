"""Where `run_rounds` has always been imported from; it stands in `fedpw_flwr.rounds.loop`."""

from fedpw_flwr.rounds.loop import run_rounds

__all__ = ["run_rounds"]
