"""compose: A Flower / PyTorch app."""

import json
from pathlib import Path
from statistics import fmean

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, UserConfig
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam
from safetensors.torch import save_file

from compose.task import Net
from fedpw_flwr import FedPW
from fedpw_flwr.fairness import evaluate_metrics_aggr_fn

app = ServerApp()


class FedPWAdam(FedAdam, FedPW):
    """Adam on the server takes FedPW's model as its gradient, in place of FedAvg's."""


def composed(config: UserConfig) -> tuple[FedPW, ConfigRecord]:
    """Build the strategy, and what it sends to the clients beside the model."""
    train_config = ConfigRecord({"lr": config["learning-rate"]})
    report_fairness = evaluate_metrics_aggr_fn("eval_acc")
    if config["with"] == "server-optimizer":
        strategy = FedPWAdam(evaluate_metrics_aggr_fn=report_fairness)
    elif config["with"] == "fedprox":
        train_config["proximal-mu"] = config["proximal-mu"]
        strategy = FedPW(evaluate_metrics_aggr_fn=report_fairness)
    elif config["with"] == "clipping":
        train_config["clipping_norm"] = config["clipping-norm"]
        strategy = FedPW(adjustment="client", evaluate_metrics_aggr_fn=report_fairness)
    else:
        raise ValueError(
            f"with={config['with']!r}: choose 'server-optimizer', 'fedprox' or 'clipping'"
        )
    return strategy, train_config


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the model in rounds; save it and the metrics of every round."""
    strategy, train_config = composed(context.run_config)
    torch.manual_seed(context.run_config["seed"])
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=train_config,
        num_rounds=context.run_config["num-server-rounds"],
    )

    # An empty output folder is the one in which Flower's SuperLink was started.
    folder = Path(context.run_config["output-folder"])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(result.arrays.to_torch_state_dict(), folder / "final_model.safetensors")
    metrics = {
        "train": [dict(record) for record in result.train_metrics_clientapp.values()],
        "evaluate": [dict(record) for record in result.evaluate_metrics_clientapp.values()],
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print("Accuracy of the clients, mean of the last 3 rounds:")
    for figure in ("mean", "std", "worst"):
        value = fmean(record[f"fairness-{figure}"] for record in metrics["evaluate"][-3:])
        print(f"{figure:>7} {value:6.1%}")
