"""deployment: A Flower / PyTorch app."""

import json
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from safetensors.torch import save_file

from deployment.task import Net
from fedpw_flwr import FedPW
from fedpw_flwr.fairness import evaluate_metrics_aggr_fn

app = ServerApp()

TRAINING = ("local-epochs", "batch-size", "learning-rate", "seed")
"""What sites are told; a run that goes on after a checkpoint must tell them the same."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the model in rounds, with a checkpoint after each; save it and all metrics."""
    config = context.run_config
    folder = Path(config["folder"])
    if not folder.is_absolute():
        raise ValueError(
            "say where the server shall keep this run, as a whole path on its machine: "
            "--run-config \"folder='/var/lib/fedpw/digits'\""
        )
    torch.manual_seed(config["seed"])

    strategy = FedPW(
        min_train_nodes=config["min-sites"],
        min_evaluate_nodes=config["min-sites"],
        min_available_nodes=config["min-sites"],
        wait_for_clients=config["wait-for-sites"],
        when_missing=config["when-missing"],
        # The mean, the spread and the worst of the sites' accuracies.
        evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn("accuracy"),
        # Sites mask and rescale their own updates.
        adjustment="client",
        checkpoint_dir=folder / "checkpoints",
        resume=config["resume"],
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        num_rounds=config["num-server-rounds"],
        timeout=config["timeout"],
        train_config=ConfigRecord({name: config[name] for name in TRAINING}),
    )

    save_file(result.arrays.to_torch_state_dict(), folder / "model.safetensors")
    metrics = {
        kind: {server_round: dict(record) for server_round, record in records.items()}
        for kind, records in (
            ("train", result.train_metrics_clientapp),
            ("evaluate", result.evaluate_metrics_clientapp),
        )
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    # Nobody may have answered in the last round.
    last = metrics["evaluate"].get(config["num-server-rounds"], {})
    if "fairness-worst" in last:
        print("Accuracy of the sites in the last round:")
        for figure in ("mean", "std", "worst"):
            print(f"{figure:>7} {last[f'fairness-{figure}']:6.1%}")
