"""Former name of `fedpw_flwr.lab.data.partition`."""

from fedpw_flwr.lab.data.partition import ByDomain, Dirichlet, Pathological, Shards

__all__ = ["ByDomain", "Dirichlet", "Pathological", "Shards"]
