"""Former name of `fedpw_flwr.lab.data.examples`."""

from fedpw_flwr.lab.data.examples import Domain, DomainCollection, ImageSet

__all__ = ["Domain", "DomainCollection", "ImageSet"]
