"""How a server asks for the loss of the model that it sends, and under which name it comes back."""

__all__ = ["INITIAL_LOSS", "REPORT_INITIAL_LOSS"]

INITIAL_LOSS = "initial_loss"
"""Metric under which a client reports F_k(w), the loss of the model that arrived over all of its
training data."""

REPORT_INITIAL_LOSS = "report-initial-loss"
"""Entry of a training message's configuration that asks for it: True."""
