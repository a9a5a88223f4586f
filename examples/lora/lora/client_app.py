"""lora: A Flower / PEFT app."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from fedpw_flwr import fedpw_mod
from lora.task import load_data, load_model
from lora.task import test as test_fn
from lora.task import train as train_fn

# Does to the update what FedPW asks; under FedAvg nothing.
app = ClientApp(mods=[fedpw_mod])


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the adapters on local text."""
    base, client = context.run_config["base-model"], context.node_config["partition-id"]
    model, (blocks, _) = load_model(base), load_data(base, client)
    set_peft_model_state_dict(model, msg.content["arrays"].to_torch_state_dict())

    torch.manual_seed(1000 * msg.content["config"]["server-round"] + client)
    epochs, lr = context.run_config["local-epochs"], context.run_config["learning-rate"]
    train_loss = train_fn(model, blocks, epochs, lr)

    adapters = get_peft_model_state_dict(model, save_embedding_layers=False)
    metrics = {"train_loss": train_loss, "num-examples": len(blocks)}
    content = RecordDict({"arrays": ArrayRecord(adapters), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the adapters on local text that was kept."""
    base, client = context.run_config["base-model"], context.node_config["partition-id"]
    model, (_, blocks) = load_model(base), load_data(base, client)
    set_peft_model_state_dict(model, msg.content["arrays"].to_torch_state_dict())

    metrics = {"client": client, "eval_loss": test_fn(model, blocks), "num-examples": len(blocks)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
