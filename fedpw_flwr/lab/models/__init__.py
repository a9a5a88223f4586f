"""Networks, one file each; "Data and models of your own" in the documentation tells how to add one.

Whoever builds a network seeds torch first, so a plain initialisation is reproducible.
"""
