"""lora: A Flower / PEFT app."""

import json
import math
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from fedpw_flwr import FedPW
from lora.task import STYLES, load_model

app = ServerApp()


def by_client(replies: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Keep every client's perplexity, in place of an average."""
    told = sorted((reply["metrics"]["client"], reply["metrics"]["eval_loss"]) for reply in replies)
    return MetricRecord({STYLES[client]: math.exp(loss) for client, loss in told})


def strategies() -> dict[str, Strategy]:
    """Build what is compared."""
    alike = {"min_available_nodes": len(STYLES), "evaluate_metrics_aggr_fn": by_client}
    return {
        "FedAvg": FedAvg(**alike),
        "FedPW": FedPW(adjustment="client", upload="packed", upload_dtype="bfloat16", **alike),
    }


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train adapters with each strategy from the same start; print the clients' perplexities."""
    torch.manual_seed(context.run_config["seed"])
    model = load_model(context.run_config["base-model"])
    trained, whole = model.get_nb_trainable_parameters()
    print(f"{trained:,} of {whole:,} parameters are adapters: only these travel")
    initial = ArrayRecord(get_peft_model_state_dict(model, save_embedding_layers=False))
    folder = Path(context.run_config["output-folder"])
    folder.mkdir(parents=True, exist_ok=True)

    perplexities: dict[str, dict[str, float]] = {}
    for name, strategy in strategies().items():
        if not perplexities:
            messages = strategy.configure_evaluate(0, initial, ConfigRecord(), grid)
            before = strategy.aggregate_evaluate(0, grid.send_and_receive(messages))
            perplexities["before"] = select(before)
        rounds = context.run_config["num-server-rounds"]
        result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=rounds)
        perplexities[name] = select(result.evaluate_metrics_clientapp[rounds])
        save_file(result.arrays.to_torch_state_dict(), folder / f"{name.lower()}.safetensors")

    (folder / "perplexities.json").write_text(json.dumps(perplexities, indent=1))
    print(f"{'Perplexity':<10}" + "".join(f"{style:>10}" for style in [*STYLES, "worst"]))
    for name, values in perplexities.items():
        shown = [*values.values(), max(values.values())]
        print(f"{name:<10}" + "".join(f"{value:10.1f}" for value in shown))


def select(metrics: MetricRecord) -> dict[str, float]:
    """Leave out what a strategy adds of its own."""
    return {style: metrics[style] for style in STYLES}
