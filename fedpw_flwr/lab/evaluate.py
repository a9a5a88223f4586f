"""The command `fedpw-evaluate`: test a run's saved model again, domain by domain.

    fedpw-evaluate outputs/my-run --best --json
    fedpw-evaluate outputs/my-run dataset.folder=/where/the/data/is/now

Use it to look closer at an old run, or to check that a model that was copied or published still
does what its run recorded: data and network are rebuilt from the run's own ``config.yaml``, and the
figures of the last model are those of the last line of ``metrics.jsonl``. That file names the
Python objects to build, so evaluate only runs whose origin you trust.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedpw_flwr.lab.config.configuration import (
    ConfigurationError,
    named_part,
    with_absolute_folders,
    with_changes,
)
from fedpw_flwr.lab.runs.records import Spread
from fedpw_flwr.lab.runs.run_folder import ModelFile, RunFolder, RunFolderError
from fedpw_flwr.lab.runs.strict_json import strict
from fedpw_flwr.lab.runs.written import number
from fedpw_flwr.lab.simulation.terminal import write_any_text

if TYPE_CHECKING:
    # A mistyped path should be reported at once, not after PyTorch's seconds of import.
    import torch

    from fedpw_flwr.lab.training.evaluation import Evaluation


@dataclass(frozen=True)
class RunEvaluation:
    """A saved model's results on the test images of every domain.

    ``round`` is the one it was saved in, None if the file does not say; ``recorded`` the accuracy
    per domain that the run recorded in that round, empty if it is not known.
    """

    model_file: str
    round: int | None
    domains: dict[str, Evaluation]
    recorded: dict[str, float]

    @property
    def spread(self) -> Spread:
        """Mean, STD (ddof = 1) and worst accuracy over domains."""
        return Spread.over_domains({name: result.accuracy for name, result in self.domains.items()})

    def to_json(self) -> dict[str, Any]:
        """Return the strict JSON form, with the names that ``metrics.jsonl`` uses."""
        results = self.domains.items()
        form: dict[str, Any] = {
            "model": self.model_file,
            "round": self.round,
            "accuracy": {name: result.accuracy for name, result in results},
            "loss": {name: result.loss for name, result in results},
            "auc": {name: result.auc for name, result in results if result.auc is not None},
            "num_examples": {name: result.num_examples for name, result in results},
            **self.spread.to_json(),
            "recorded_accuracy": self.recorded,
        }
        return {name: strict(value) for name, value in form.items() if name != "auc" or value}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if the run could not be evaluated, else 0."""
    write_any_text()
    options = _parser().parse_intermixed_args(arguments)
    try:
        evaluation = evaluate_run(
            RunFolder(options.run),
            best=options.best,
            device=options.device,
            overrides=options.overrides,
        )
    except (RunFolderError, ConfigurationError) as error:
        said = f"[bold red]fedpw-evaluate:[/] {escape(str(error))}"
        Console(stderr=True).print(said, highlight=False, soft_wrap=True)
        return 1
    if options.json:
        # In ASCII, as JSON can be: any terminal shows it, and every name stays what it is.
        print(json.dumps(evaluation.to_json(), allow_nan=False, indent=2))
    else:
        Console().print(_table(options.run, evaluation))
    return 0


def evaluate_run(
    folder: RunFolder,
    *,
    best: bool = False,
    device: str = "auto",
    overrides: Sequence[str] = (),
) -> RunEvaluation:
    """Rebuild a run's data and network, load its model, and test it on every domain.

    ``best`` takes the model of the round with the best worst domain, ``device="auto"`` CUDA when
    there is one; ``overrides`` change the run's configuration as ``key=value``. RunFolderError if a
    file of the run is missing, broken or does not fit; ConfigurationError if the configuration, an
    override or the device cannot be used, or the data are missing.
    """
    recorded: dict[int | None, dict[str, float]] = {
        record.round: record.accuracy for record in folder.read_rounds()
    }
    configuration = with_absolute_folders(with_changes(folder.read_config(), overrides), Path.cwd())
    name: ModelFile = "model_best.safetensors" if best else "model.safetensors"
    state, metadata = folder.load_model(name)

    from fedpw_flwr.device import available_device
    from fedpw_flwr.lab.experiment import build_data, build_group
    from fedpw_flwr.lab.training.batches import Normalisation
    from fedpw_flwr.lab.training.evaluation import evaluate

    with named_part("--device"):
        target = available_device(None if device == "auto" else device)
    data = build_data(configuration)
    model: torch.nn.Module = build_group(
        "model", configuration, num_classes=data.num_classes, in_channels=data.in_channels
    )
    _load(model, state, folder.path / name)
    normalisation = Normalisation(data.mean, data.std, target)
    saved_in = int(metadata["round"]) if metadata.get("round", "").isdecimal() else None
    return RunEvaluation(
        model_file=name,
        round=saved_in,
        domains={one.name: evaluate(model, one.test, normalisation) for one in data.domains},
        recorded=recorded.get(saved_in, {}),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedpw-evaluate",
        description="Test the model that a run saved on the test data of every domain.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of the run")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="change the run's configuration, for example dataset.folder=... for data that moved",
    )
    parser.add_argument(
        "--best", action="store_true", help="the model with the best worst domain, not the last one"
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, ... (default: auto, CUDA when there is one)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _load(model: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load a state; PyTorch's message lists all that does not fit, of which a few lines tell."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        said = str(error).splitlines()
        shown = [*said[:4], f"\t... and {len(said) - 4} lines more"] if len(said) > 5 else said
        raise RunFolderError(
            f"{path} does not fit the network that the run's configuration describes; were the "
            f"two files mixed from different runs?\n" + "\n".join(shown)
        ) from error


def _table(run: Path, evaluation: RunEvaluation) -> Table:
    when = "" if evaluation.round is None else f", round {evaluation.round}"
    table = Table(title=f"{escape(run.name or str(run))}: {evaluation.model_file}{when}")
    recorded = evaluation.recorded
    table.add_column("domain")
    for head in ("examples", "loss", "accuracy, %", *(["recorded, %"] if recorded else [])):
        table.add_column(head, justify="right")

    def add_row(label: str, images: str, loss: str, now: float, then: float) -> None:
        shares = [now, then] if recorded else [now]
        table.add_row(label, images, loss, *(number(100 * share) for share in shares))

    for name, result in evaluation.domains.items():
        then = recorded.get(name, math.nan)
        add_row(escape(name), str(result.num_examples), f"{result.loss:.4f}", result.accuracy, then)
    table.add_section()
    now, before = evaluation.spread, Spread.over_domains(recorded)
    add_row("mean (AVG)", "", "", now.mean, before.mean)
    add_row("STD (ddof=1)", "", "", now.std, before.std)
    add_row("worst", "", "", now.worst, before.worst)
    return table


if __name__ == "__main__":
    sys.exit(main())
