"""compose: A Flower / PyTorch app."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable

from compose.task import Net, load_data
from compose.task import test as test_fn
from compose.task import train as train_fn
from fedpw_flwr import fedpw_mod

app = ClientApp()


def clipping_mod(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Flower's clipping, in the runs that set a norm: without one it answers with an error."""
    if "clipping_norm" in msg.content["config"]:
        return fixedclipping_mod(msg, context, call_next)
    return call_next(msg, context)


# The last mod sees the update first: FedPW adjusts it, then it is clipped.
@app.train(mods=[clipping_mod, fedpw_mod])
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

    config = msg.content["config"]
    partition_id = context.node_config["partition-id"]
    # Batches are drawn alike in every run of the same seed, on whichever worker it happens.
    torch.manual_seed(hash((context.run_config["seed"], config["server-round"], partition_id)))
    trainloader, _ = load_data(
        partition_id, context.node_config["num-partitions"], context.run_config["batch-size"]
    )
    train_loss = train_fn(
        model,
        trainloader,
        context.run_config["local-epochs"],
        config["lr"],
        config.get("proximal-mu", 0.0),
        device,
    )

    metrics = {"train_loss": train_loss, "num-examples": len(trainloader.dataset)}
    content = RecordDict(
        {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}
    )
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model on local data."""
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

    _, testloader = load_data(
        context.node_config["partition-id"],
        context.node_config["num-partitions"],
        context.run_config["batch-size"],
    )
    eval_loss, eval_acc = test_fn(model, testloader, device)

    metrics = {
        "eval_loss": eval_loss,
        "eval_acc": eval_acc,
        "num-examples": len(testloader.dataset),
    }
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
