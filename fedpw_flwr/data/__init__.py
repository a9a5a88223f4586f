"""Former name of `fedpw_flwr.lab.data`, by which data sets of one's own import it."""
