"""Observers for any run: a page to watch it on, early stopping, trackers of experiments.

    from fedpw_flwr.observers import EarlyStopping, HtmlReport

    watch = [HtmlReport("runs/mine"), EarlyStopping("evaluate/accuracy", patience=10)]
    strategy = FedPW(observers=watch)

One of your own is a subclass of `Observer`; a further tracker is one of `Tracker`.
"""

from fedpw_flwr.observers.early_stopping import EarlyStopping
from fedpw_flwr.observers.html_report import HtmlReport
from fedpw_flwr.observers.mlflow import MLflowTracker
from fedpw_flwr.observers.tensorboard import TensorBoardTracker
from fedpw_flwr.observers.tracker import Tracker
from fedpw_flwr.observers.wandb import WandbTracker
from fedpw_flwr.rounds.observers import Observer

__all__ = [
    "EarlyStopping",
    "HtmlReport",
    "MLflowTracker",
    "Observer",
    "TensorBoardTracker",
    "Tracker",
    "WandbTracker",
]
