"""The ServerApp: rounds of training, each global model tested on every domain and recorded."""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedpw_flwr.checkpoint import CheckpointStore
from fedpw_flwr.lab.app.lost_machines import MachineWatch
from fedpw_flwr.lab.app.ordered_strategy import OrderedStrategy
from fedpw_flwr.lab.app.profiling import ProfiledStrategy, RoundProfiler
from fedpw_flwr.lab.app.recording import RecordedStrategy, RunRecorder, client_metrics
from fedpw_flwr.lab.config.configuration import (
    ConfigurationError,
    resolved_yaml,
    run_fingerprint,
)
from fedpw_flwr.lab.config.early_checks import warning_of_slow_arithmetic
from fedpw_flwr.lab.config.hardware import multiplies_bfloat16
from fedpw_flwr.lab.experiment import experiment_of
from fedpw_flwr.lab.runs.holdings import Holdings
from fedpw_flwr.lab.runs.run_folder import RunFolder
from fedpw_flwr.rounds.loop import run_rounds
from fedpw_flwr.strategy.draws import Draws
from fedpw_flwr.strategy.screened_fedavg import ScreenedFedAvg

__all__ = ["app"]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run configuration describes, into its output folder.

    Raises
    ------
    ConfigurationError
        If the configuration cannot be used, or the federation has another number of clients.
    RunFolderError
        If the output folder already holds a run, or holds none to go on with.
    CheckpointError
        If the run cannot go on from what its folder holds, or a checkpoint cannot be written.
    """
    config_name = str(context.run_config["config-name"])
    overrides = str(context.run_config["overrides"])
    experiment = experiment_of(config_name, overrides)
    folder = RunFolder(_output_folder(str(context.run_config["output-folder"]), context.run_id))
    profiler = RoundProfiler() if experiment.runtime.profile else None
    recorder = RunRecorder(folder, experiment, profiler)
    carrier = strategy = experiment.new_strategy(client_metrics)
    if isinstance(carrier, ScreenedFedAvg):
        carrier.sampling.draws = Draws(experiment.seed)
        # The clients of this app answer: a seed draws the same ones at whatever nodes.
        carrier.sampling.asks_identities = True
    else:
        strategy = OrderedStrategy(strategy, experiment.seed)
    if profiler is not None:
        strategy = ProfiledStrategy(strategy, profiler)
    strategy = RecordedStrategy(strategy, recorder)
    if experiment.runtime.ray_address is not None:
        strategy = MachineWatch(strategy, folder.path)
    resume = context.run_config.get("resume") is True
    if not resume:
        folder.check_unused()
    slow = warning_of_slow_arithmetic(experiment.configuration, multiplies_bfloat16())
    if slow is not None:
        logging.getLogger("flwr").warning(slow)
    _wait_for_clients(grid, len(experiment.shares), experiment.runtime.connect_timeout)

    def begin(after: int | None) -> None:
        if resume:
            folder.go_on(after)
            folder.write_command(config_name, overrides)
        else:
            folder.start(config_name, overrides)
        recorder.go_on()
        folder.write_holdings(
            Holdings.of_shares(
                experiment.shares, experiment.data.num_classes, experiment.data_digest
            )
        )
        folder.write_config(resolved_yaml(experiment.configuration))

    # What else a strategy may draw by chance on the server is the same in every run.
    random.seed(experiment.seed)
    run_rounds(
        strategy,
        CheckpointStore(folder.checkpoints, every=experiment.runtime.checkpoint_every),
        grid,
        ArrayRecord(experiment.new_model().state_dict()),
        num_rounds=experiment.rounds,
        timeout=experiment.runtime.round_timeout,
        evaluate_fn=recorder.record_round,
        resume=resume,
        fingerprint={
            "configuration": run_fingerprint(experiment.configuration),
            "pictures": experiment.data_digest,
        },
        carrier=carrier,
        on_begin=begin,
    )
    recorder.finish()
    # Not at the top: matplotlib and SciPy would keep the first round waiting for a second.
    from fedpw_flwr.lab.plots.run_plots import write_plots

    write_plots(folder)


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
