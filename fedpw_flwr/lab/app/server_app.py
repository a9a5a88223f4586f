"""The ServerApp: rounds of training, each global model tested on every domain and recorded."""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path
from threading import Lock
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy
from omegaconf import OmegaConf

from fedpw_flwr.lab.app.profiling import RoundProfiler
from fedpw_flwr.lab.app.recording import RunRecorder, client_metrics
from fedpw_flwr.lab.app.testing import GlobalModelTest
from fedpw_flwr.lab.config.configuration import (
    ConfigurationError,
    resolved_yaml,
    run_fingerprint,
    stop_settings,
    trackers_of,
)
from fedpw_flwr.lab.config.early_checks import warning_of_slow_arithmetic
from fedpw_flwr.lab.experiment import Experiment, experiment_of
from fedpw_flwr.lab.runs.run_folder import RunFolder
from fedpw_flwr.observers import (
    EarlyStopping,
    HtmlReport,
    MLflowTracker,
    Observer,
    TensorBoardTracker,
    Tracker,
    WandbTracker,
)
from fedpw_flwr.rounds.checkpoints import CheckpointStore
from fedpw_flwr.rounds.loop import run_rounds
from fedpw_flwr.strategy.sampling import NodeSampling
from fedpw_flwr.strategy.screened_fedavg import SampledFedAvg

app = ServerApp()

_TRACKERS: dict[str, type[Tracker]] = {
    tracker.library: tracker for tracker in (TensorBoardTracker, MLflowTracker, WandbTracker)
}

# matplotlib's styles are the process's.
_plotting = Lock()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run configuration describes, into its output folder.

    ConfigurationError if the configuration cannot be used, or the federation has another number of
    clients; RunFolderError if the output folder already holds a run, or holds none to go on with;
    CheckpointError if the run cannot go on from what its folder holds, or a checkpoint be written.
    """
    run = str(context.run_config["config-name"]), str(context.run_config["overrides"])
    experiment = experiment_of(*run)
    folder = RunFolder(_output_folder(str(context.run_config["output-folder"]), context.run_id))
    profiler = RoundProfiler() if experiment.runtime.profile else None
    test = GlobalModelTest(experiment, grid, run)
    resume = context.run_config.get("resume") is True
    shown = getattr(grid, "on_record", None)
    recorder = RunRecorder(folder, test, profiler, shown, resume=resume)
    groups = {client: share.domain for client, share in enumerate(experiment.shares)}
    domains = ", ".join(dict.fromkeys(groups.values()))
    title = f"{experiment.configuration.strategy.name} on {domains}, seed {experiment.seed}"
    settings = resolved_yaml(experiment.configuration)
    report = HtmlReport(folder.path, title, groups, settings)
    strategy = seeded(experiment.new_strategy(client_metrics), experiment.seed)
    if not resume:
        folder.check_unused()
    slow = warning_of_slow_arithmetic(experiment.configuration)
    if slow is not None:
        logging.getLogger("flwr").warning(slow)
    _wait_for_clients(grid, len(experiment.shares), experiment.runtime.connect_timeout)
    # What else a strategy may draw by chance on the server is the same in every run.
    random.seed(experiment.seed)
    run_rounds(
        strategy,
        CheckpointStore(folder.checkpoints, every=experiment.runtime.checkpoint_every),
        grid,
        ArrayRecord(test.model.state_dict()),
        num_rounds=experiment.rounds,
        timeout=experiment.runtime.round_timeout,
        evaluate_fn=recorder.record_round,
        resume=resume,
        fingerprint={
            "configuration": run_fingerprint(experiment.configuration),
            "pictures": experiment.data_digest,
        },
        observers=[
            *(recorder, *([profiler] if profiler else []), report),
            *_watches(experiment, folder),
        ],
    )
    # Not at the top: matplotlib and SciPy would keep the first round waiting for a second.
    from fedpw_flwr.lab.plots.run_plots import write_plots

    with _plotting:
        write_plots(folder)


def seeded(strategy: Strategy, seed: int) -> Strategy:
    """Let a seed decide which clients a strategy draws, at whatever nodes.

    One of Flower's own on FedAvg becomes one of `SampledFedAvg`, so that all methods of a
    comparison train the same clients in the same round; others draw as they do.
    """
    if not isinstance(strategy, FedAvg):
        return strategy
    if not isinstance(strategy, SampledFedAvg):
        kind = type(strategy)
        bases = (SampledFedAvg,) if kind is FedAvg else (kind, SampledFedAvg)
        strategy.__class__ = type(kind.__name__, bases, {})
        assert isinstance(strategy, SampledFedAvg)
        strategy.sampling = NodeSampling()
    strategy.sampling.seed = seed
    # The clients of this app answer who they are.
    strategy.sampling.asks_identities = True
    return strategy


def _watches(experiment: Experiment, folder: RunFolder) -> list[Observer]:
    """Return the trackers and the early stopping that the configuration asks for."""
    configuration, watches = experiment.configuration, list[Observer]()
    settings: Any = OmegaConf.to_container(configuration, resolve=True)
    for name in trackers_of(configuration):
        watches.append(_TRACKERS[name](folder.path, settings))
    stop = stop_settings(configuration)
    return watches if stop is None else [*watches, EarlyStopping(**stop)]


def _output_folder(requested: str, run_id: int) -> Path:
    """Return the folder asked for, else one of this run's own under the working folder."""
    if not requested:
        return Path.cwd() / "outputs" / f"run-{run_id}"
    if not Path(requested).is_absolute():
        raise ConfigurationError(
            f"output-folder={requested!r} is relative, and Flower runs this app in a folder of its "
            "own: give the whole path, for example output-folder='$PWD/outputs/mine'"
        )
    return Path(requested)


def _wait_for_clients(grid: Grid, expected: int, timeout: float) -> None:
    """Wait until every client is connected; a federation of another size would wait for ever."""
    deadline = time.monotonic() + timeout
    connected = 0
    while time.monotonic() < deadline:
        connected = len(list(grid.get_node_ids()))
        if connected >= expected:
            break
        time.sleep(0.2)
    if connected != expected:
        raise ConfigurationError(
            f"{connected} clients are connected (waited up to {timeout:g} s), the experiment has "
            f"{expected}. Start it with the command fedpw, or with flwr run . "
            f'--federation-config "num-supernodes={expected} client-resources-num-cpus=1"'
        )
