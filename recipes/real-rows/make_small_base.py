"""Make a small base model for the rows of a recipe: a tokenizer trained on them, and a Llama that has read a little.

    python make_small_base.py RECIPE DIR [--steps 200]

The tokenizer (byte-level BPE with a ChatML-like template) is trained on all texts of the rows, on both sides. The
model, of some four million weights, reads the rows in the reference language as conversations, and of the other
languages the prompts alone, never an answer. It is no evidence about real models: it only lets a recipe run, on real
rows, where no pretrained model can be had.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cctuning.data import Source, load_rows

PAD, OPEN, CLOSE = "<|pad|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def rows_of(recipe: Path, limit: int | None = None) -> tuple[Dataset, str]:
    """The rows that the recipe's `data` names, with those in its reference language, and that language."""
    options: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    language = options.get("reference_language", "en")
    sources = [replace(Source.from_dict(entry), bad_rows="skip") for entry in options["data"]]
    if limit is not None:
        sources = [replace(source, limit=limit) for source in sources]
    rows, _ = load_rows(sources, reference_language=language)
    return rows, language


def train_tokenizer(rows: Dataset, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the rows' texts; it has a token for every byte, so no text is unknown to it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, OPEN, CLOSE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for name in ("prompt", "response", "reference") for text in rows[name] if text is not None]
    core.train_from_iterator(tqdm(texts, desc="Tokenizer", unit="text"), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=CLOSE,
        additional_special_tokens=[OPEN],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def blocks(rows: Dataset, language: str, tokenizer: PreTrainedTokenizerFast, length: int) -> Tensor:
    """What the model reads, as ids (N, length): texts one after the other, in a drawn order, each closed."""
    texts = []
    for row in rows:
        turns = [{"role": "user", "content": row["prompt"]}]
        if row["lang"] == language and row["response"] is not None:
            turns.append({"role": "assistant", "content": row["response"]})
            texts.append(str(tokenizer.apply_chat_template(turns, tokenize=False)))
        else:
            texts += [row["prompt"] + CLOSE] + ([row["reference"] + CLOSE] if row["reference"] else [])
    order = torch.randperm(len(texts)).tolist()
    encoded = tokenizer([texts[i] for i in order], add_special_tokens=False)["input_ids"]
    ids = torch.tensor([token for text in encoded for token in text])
    count = max(1, len(ids) // length)
    return ids[: count * length].view(count, -1)


def pretrain(model: LlamaForCausalLM, data: Tensor, steps: int, batch_size: int, learning_rate: float) -> float:
    """Plain language modelling with a warm-up and a linear decay; the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.05, (steps - step) / max(1, steps - warm)))
    )
    loss = torch.tensor(float("nan"))
    bar = tqdm(range(steps), desc="Base", unit="step", dynamic_ncols=True)
    for _ in bar:
        ids = data[torch.randint(len(data), (batch_size,))]
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    return loss.item()


def make(
    recipe: Path,
    output: Path,
    *,
    steps: int = 200,
    vocabulary: int = 8192,
    hidden_size: int = 192,
    layers: int = 6,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> LlamaForCausalLM:
    """Write the base to `output`, whole or not at all, and return it.

    Args:
        recipe: YAML whose `data` names the rows.
        output: directory to write; must not exist.
        steps: of language modelling, `batch_size` blocks of 128 tokens each.
        vocabulary, hidden_size, layers: size of the model.
        limit: rows to read of each source; unset: as the recipe says.
        seed: of the weights and of the order of the texts.
    """
    if output.exists():
        raise SystemExit(f"{output}: exists already; name a directory that does not.")
    torch.manual_seed(seed)
    rows, language = rows_of(recipe, limit)
    tokenizer = train_tokenizer(rows, vocabulary)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=hidden_size * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    data = blocks(rows, language, tokenizer, length=128)
    loss = pretrain(model.train(), data, steps, batch_size, learning_rate=2e-3)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.eval().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    os.replace(partial, output)
    print(
        f"{output}: {model.num_parameters() / 1e6:.1f} million weights, {len(tokenizer)} tokens, last loss {loss:.2f}"
    )
    return model


def main(argv: list[str] | None = None) -> None:
    """The command line of `make`."""
    parser = argparse.ArgumentParser(description="Make a small base model for the rows of a recipe.")
    parser.add_argument("recipe", type=Path, help="YAML whose data: names the rows")
    parser.add_argument("output", type=Path, help="directory to write; must not exist")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--hidden_size", type=int, default=192, help="a multiple of 24")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--limit", type=int, help="rows to read of each source")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(argv))
    make(options.pop("recipe"), options.pop("output"), **options)


if __name__ == "__main__":
    main()
