"""hospitals: A Flower app."""

import json
from pathlib import Path
from statistics import fmean

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedpw_flwr.fairness import evaluate_metrics_aggr_fn
from hospitals.task import new_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the model in rounds; save the metrics of every round."""
    config = context.run_config
    strategy = FedAvg(
        min_train_nodes=config["hospitals"],
        min_evaluate_nodes=config["hospitals"],
        min_available_nodes=config["hospitals"],
        # Beside Flower's averages: the mean, the spread and the worst of the hospitals' accuracies.
        evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn("eval_acc"),
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(new_model()),
        train_config=ConfigRecord({"lr": config["learning-rate"]}),
        num_rounds=config["num-server-rounds"],
    )

    folder = Path(config["output-folder"])
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {
        "train": [dict(record) for record in result.train_metrics_clientapp.values()],
        "evaluate": [dict(record) for record in result.evaluate_metrics_clientapp.values()],
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print("Accuracy of the hospitals, mean of the last 3 rounds:")
    for figure in ("mean", "std", "worst"):
        value = fmean(record[f"fairness-{figure}"] for record in metrics["evaluate"][-3:])
        print(f"{figure:>7} {value:6.1%}")
