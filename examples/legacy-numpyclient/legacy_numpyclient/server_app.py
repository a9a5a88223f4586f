"""legacy-numpyclient: A Flower / PyTorch app."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import Context
from flwr.common import Metrics, NDArrays, Scalar, ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.serverapp import ServerApp
from safetensors.torch import save_file

from fedpw_flwr.fairness import evaluate_metrics_aggregation_fn
from fedpw_flwr.legacy import FedPW
from legacy_numpyclient.task import Net, get_weights, set_weights


def metrics_writer(file: Path) -> Callable[[list[tuple[int, Metrics]]], Metrics]:
    """Aggregate the clients' metrics of a round; print them, and write them as a line of a file."""
    aggregate = evaluate_metrics_aggregation_fn("accuracy")
    file.write_text("")

    def aggregate_and_write(metrics: list[tuple[int, Metrics]]) -> Metrics:
        aggregated = aggregate(metrics)
        with file.open("a") as lines:
            lines.write(json.dumps(aggregated) + "\n")
        mean, std, worst = (aggregated[f"fairness-{figure}"] for figure in ("mean", "std", "worst"))
        print(f"Accuracy of the clients: mean {mean:.1%}, std {std:.1%}, worst {worst:.1%}")
        return aggregated

    return aggregate_and_write


def model_writer(file: Path) -> Callable[[int, NDArrays, dict[str, Scalar]], None]:
    """Save the global model of every round over the one before."""

    def save(server_round: int, parameters: NDArrays, config: dict[str, Scalar]) -> None:
        net = Net()
        set_weights(net, parameters)
        save_file(net.state_dict(), file)

    return save


def server_fn(context: Context) -> ServerAppComponents:
    """Build what the server runs."""
    # An empty output folder is the one in which Flower's SuperLink was started.
    folder = Path(context.run_config["output-folder"])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(context.run_config["seed"])
    strategy = FedPW(
        adjustment="client",
        initial_parameters=ndarrays_to_parameters(get_weights(Net())),
        on_fit_config_fn=lambda server_round: {"server-round": server_round},
        evaluate_fn=model_writer(folder / "final_model.safetensors"),
        evaluate_metrics_aggregation_fn=metrics_writer(folder / "metrics.jsonl"),
    )
    config = ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=config)


app = ServerApp(server_fn=server_fn)
