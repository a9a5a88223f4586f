"""lora: A Flower / PEFT app."""

import math
from functools import cache

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora.texts import CLIENTS, paragraphs

STYLES = list(CLIENTS)
BLOCK = 64


@cache
def load_model(base: str) -> PeftModel:
    """Load a base model, a folder or a name on Hugging Face's hub, and put adapters on it.

    The base stays where it is, frozen, with its tied weights; only adapters are trained and sent.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapters = LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=16,
        target_modules="all-linear",
        # GPT-2's linear layers keep their weights transposed.
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    return get_peft_model(model, adapters)


@cache
def load_data(base: str, client: int) -> tuple[Tensor, Tensor]:
    """Load a client's blocks of tokens, shape (blocks, BLOCK): to train on, and to test on."""
    style = STYLES[client]
    texts = paragraphs(style, CLIENTS[style])
    tokenizer = AutoTokenizer.from_pretrained(base)
    kept = len(texts) // 5
    return to_blocks(tokenizer, texts[kept:]), to_blocks(tokenizer, texts[:kept])


def to_blocks(tokenizer, texts: list[str]) -> Tensor:
    """Write texts one after the other, and cut their tokens into blocks."""
    tokens = tokenizer("\n".join(texts), verbose=False)["input_ids"]
    count = len(tokens) // BLOCK
    return torch.tensor(tokens[: count * BLOCK]).reshape(count, BLOCK)


def train(model, blocks: Tensor, epochs: int, lr: float, batch_size: int = 8) -> float:
    """Train what is not frozen; return the mean loss over all batches."""
    model.train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=lr)
    losses = []
    for _ in range(epochs):
        for batch in blocks[torch.randperm(len(blocks))].split(batch_size):
            loss = model(input_ids=batch, labels=batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(model, blocks: Tensor) -> float:
    """Return the mean loss of a token."""
    model.eval()
    losses = [
        model(input_ids=batch, labels=batch).loss.item() * len(batch) for batch in blocks.split(32)
    ]
    return math.fsum(losses) / len(blocks)
