"""hospitals: A Flower app."""

from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from hospitals.task import load_data, loss, probabilities
from hospitals.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on this hospital's patients."""
    config, run = msg.content["config"], context.run_config
    model = msg.content["arrays"].to_numpy_ndarrays(keep_input=False)
    x, y, _, _ = load_data(Path(context.node_config["file"]), run["seed"])
    train_loss = train_fn(
        model,
        x,
        y,
        run["local-epochs"],
        run["batch-size"],
        config["lr"],
        seed=1000 * run["seed"] + config["server-round"],
    )
    metrics = {"train_loss": train_loss, "num-examples": len(y)}
    content = RecordDict({"arrays": ArrayRecord(model), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Test the model on patients of this hospital that nobody trained on."""
    model = msg.content["arrays"].to_numpy_ndarrays()
    _, _, x, y = load_data(Path(context.node_config["file"]), context.run_config["seed"])
    metrics = {
        "eval_loss": loss(model, x, y),
        "eval_acc": float(np.mean((probabilities(model, x) > 0.5) == y)),
        "num-examples": len(y),
    }
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
