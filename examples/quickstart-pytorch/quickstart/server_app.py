"""quickstart: A Flower / PyTorch app."""

import json
from pathlib import Path
from statistics import fmean

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import save_file

from fedpw_flwr.fairness import evaluate_metrics_aggr_fn
from quickstart.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the model in rounds; save it and the metrics of every round."""
    torch.manual_seed(context.run_config["seed"])
    global_model = Net()

    strategy = FedAvg(
        # Beside Flower's averages: the mean, the spread and the worst of the clients' accuracies.
        evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn("eval_acc"),
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(global_model.state_dict()),
        train_config=ConfigRecord({"lr": context.run_config["learning-rate"]}),
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
