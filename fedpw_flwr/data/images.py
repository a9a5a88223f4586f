"""Former name of `fedpw_flwr.lab.data.images`."""

from fedpw_flwr.lab.data.images import Domain, DomainCollection, ImageSet

__all__ = ["Domain", "DomainCollection", "ImageSet"]
