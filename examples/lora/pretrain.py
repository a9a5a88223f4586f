"""Make a tiny GPT-2 from its config, and train it on a neutral text: python pretrain.py FOLDER."""

import sys

import torch
from lora.task import BLOCK, to_blocks, train
from lora.texts import paragraphs
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|endoftext|>"


def main(folder: str) -> None:
    """Write the model and its tokenizer into a folder, in Hugging Face's form."""
    torch.manual_seed(0)
    # So small a model gains nothing from more, and on a busy machine they wait for each other.
    torch.set_num_threads(1)
    texts = paragraphs("neutral", 800)
    pairs = ByteLevelBPETokenizer()
    pairs.train_from_iterator(texts, vocab_size=800, special_tokens=[END], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pairs, bos_token=END, eos_token=END)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=2 * BLOCK,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model, blocks = GPT2LMHeadModel(config), to_blocks(tokenizer, texts)
    loss = train(model, blocks, epochs=12, lr=3e-3, batch_size=16)
    print(f"{model.num_parameters():,} parameters, mean loss on the neutral text {loss:.2f}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
