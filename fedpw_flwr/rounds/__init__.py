"""A round, whichever method and whichever of Flower's APIs: begun, finished, recorded, saved."""
