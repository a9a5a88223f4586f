"""Runs of the command: the server in its own process, the clients in Ray's."""
