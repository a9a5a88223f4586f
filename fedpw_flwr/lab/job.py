"""One run of the command: how many like it may run at a time, and how it is executed."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig

from fedpw_flwr.lab.config.configuration import count_clients, runtime_settings
from fedpw_flwr.lab.config.early_checks import count_gpus
from fedpw_flwr.lab.config.setting_rules import GROUPS
from fedpw_flwr.lab.runs.records import RoundRecord
from fedpw_flwr.lab.runs.run_folder import RunFolder
from fedpw_flwr.lab.simulation.progress import RunProgress
from fedpw_flwr.lab.simulation.ray_processes import check_cluster_answers, usable_cpus
from fedpw_flwr.lab.simulation.run import App, RunOutcome, is_library, run_app
from fedpw_flwr.lab.simulation.runs import Runs

_CLIENT = "fedpw_flwr.lab.app.client_app"


def runs_at_a_time(configuration: DictConfig) -> int:
    """Return how many runs like this one keep all workers busy, and one to spare.

    Only one where the strategy is not of this package: it may draw from Python's or NumPy's source
    of random numbers, which all runs of a process share.
    """
    runtime = runtime_settings(configuration)
    if not str(configuration.strategy.get("_target_")).startswith("fedpw_flwr."):
        return 1
    if runtime.runs_at_a_time != "auto":
        return int(runtime.runs_at_a_time)
    if runtime.ray_address is not None:
        return 2
    workers = usable_cpus(runtime) // runtime.cpus_per_client
    if runtime.gpus_per_client > 0:
        workers = min(workers, int((count_gpus() or 0) / runtime.gpus_per_client))
    return 1 + max(1, workers // count_clients(configuration))


def execute(
    configuration: DictConfig, folder: RunFolder, runs: Runs, progress: RunProgress, resume: bool
) -> RunOutcome:
    """Run an experiment into a folder, from where the folder's run stands if it is to `resume`.

    The configuration is checked, early, too, with absolute folders. ConfigurationError or
    RunFolderError if the run cannot start.
    """
    runtime, num_clients = runtime_settings(configuration), count_clients(configuration)
    if runtime.ray_address is not None:
        check_cluster_answers(runtime.ray_address)
    if not resume:
        folder.check_unused()
    progress.say("starting")
    # By these names all processes know the experiment that is provided.
    known_as = ("", str(folder.path))
    run_config = {
        "config-name": known_as[0],
        "overrides": known_as[1],
        "output-folder": str(folder.path),
        "resume": resume,
    }
    app = App("fedpw_flwr.lab.app.server_app:app", f"{_CLIENT}:app", num_clients, run_config)

    def shown(record: RoundRecord) -> None:
        progress.show(record)
        if record.round == progress.rounds:
            runs.last_round_done()

    with ExitStack() as held:

        def prepare() -> list[Any]:
            """Build the experiment for the server, and what builds it for the workers."""
            # PyTorch takes two seconds to import, in which the workers start.
            from fedpw_flwr.lab.experiment import build_experiment, carried, provide

            experiment = build_experiment(configuration)
            experiment.check()
            held.callback(provide(experiment, *known_as))
            return [carried(experiment, *known_as)]

        modules = _modules(configuration) if runtime.ray_address is not None else []
        workers = held.enter_context(runs.workers(runtime, num_clients, [_CLIENT], modules))
        return run_app(app, workers, folder.path, prepare, shown)


def _modules(configuration: DictConfig) -> list[str]:
    """Return the files and folders of the package, and of the user's own modules.

    Libraries that are installed, a cluster's machines have.
    """
    found = {str(configuration[group]["_target_"]).split(".")[0] for group in GROUPS}
    files = []
    for name in sorted({"fedpw_flwr", *found}):
        spec = find_spec(name)
        places = [] if spec is None else [*(spec.submodule_search_locations or []), spec.origin]
        place = next(filter(None, places), None)
        if place is not None and (name == "fedpw_flwr" or not is_library(place)):
            files.append(place)
    return files
