"""Which turns of a conversation to align: held-out parallels found again after `align_turns: all` and `last`.

    python -m experiments.real.turns --model HuggingFaceTB/SmolLM2-135M-Instruct

Conversations of three Tatoeba sentences (question, answer, question) in French and Spanish are aligned with their
English, without answers, by the defaults of `connection: align`. Held out are other conversations. A parallel is found
where, of all English ones, the right one has the highest cosine in units of the English side's spread, at the middle
layer; the mean is over a prompt alone, the last turn of a conversation, or all of its turns.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning import CCConfig, CCTrainer, ConnectionConfig
from cctuning.connection.align import Statistics
from cctuning.data import Encoder
from experiments.real.cells import amp
from experiments.real.worlds import Text, general

LANGUAGES = ("fr", "es")
KINDS = ("prompt", "last", "all")


def conversations(lang: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts of three turns in `lang`, with their English as the reference."""
    pairs = general(Text(source="tatoeba", languages=(lang,)), LANGUAGES)
    random.Random(seed).shuffle(pairs)
    made = []
    for start in range(0, 3 * count, 3):
        row: dict[str, Any] = {"lang": lang, "response": None}
        for part, side in (("prompt", "text"), ("reference", "reference")):
            said = zip(("user", "assistant", "user"), pairs[start : start + 3], strict=True)
            row[part] = [{"role": role, "content": pair[side]} for role, pair in said]
        made.append(row)
    return made


@torch.no_grad()
def pooled(model: Any, encoder: Encoder, prompts: Sequence[Any]) -> torch.Tensor:
    """Means of the middle layer over what is aligned of each prompt, (N, d)."""
    found, middle = [], model.config.num_hidden_layers // 2
    for prompt in prompts:
        row = encoder.encode_row({"prompt": prompt})
        start, end = row["text"]
        with torch.autocast("cpu", dtype=amp(), enabled=amp() is not None):
            hidden = model.model(torch.tensor([row["input_ids"]]), output_hidden_states=True, use_cache=False)
        found.append(hidden.hidden_states[middle][0, start:end].float().mean(dim=0))
    return torch.stack(found)


def found_again(model: Any, tokenizer: Any, held: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Percent of the parallels that are found, for each kind, over all languages; the upper layers are dropped."""
    result, depth = {}, model.config.num_hidden_layers
    model.model.layers = model.model.layers[: depth // 2 + 1]
    for kind in KINDS:
        encoder, right = Encoder(tokenizer, chat=True, align_turns="last" if kind == "last" else "all"), []
        for rows in held.values():
            sides = [
                pooled(model, encoder, [row[part][-1]["content"] if kind == "prompt" else row[part] for row in rows])
                for part in ("prompt", "reference")
            ]
            statistics = Statistics.of(sides[1])
            own, english = (normalize(statistics.z(side), dim=-1) for side in sides)
            right += ((own @ english.T).argmax(dim=1) == torch.arange(len(own))).tolist()
        result[kind] = 100 * sum(right) / len(right)
    return result


def trained(source: str, turns: str, rows: Sequence[dict[str, Any]], seed: int, rate: float) -> Any:
    """The model after one pass over the conversations."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.get_input_embeddings().weight.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        args = CCConfig(
            folder, learning_rate=rate, num_train_epochs=1, per_device_train_batch_size=8, warmup_steps=3,
            lr_scheduler_type="cosine", seed=seed, bf16=amp() is not None, use_cpu=True, save_strategy="no",
            activation_checkpointing=False, report_to="none", logging_steps=10, disable_tqdm=True,
        )  # fmt: skip
        data, tokenizer = Dataset.from_list(list(rows)), AutoTokenizer.from_pretrained(source)
        config = ConnectionConfig(align_turns=turns)
        made = CCTrainer(model, args, config, train_dataset=data, processing_class=tokenizer)
        made.train()
        return made.connected.merge_and_unload().eval()


def main() -> None:
    """Print one JSON line for the base and one for each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=60, help="conversations a language")
    parser.add_argument("--held", type=int, default=60, help="held-out conversations a language")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    every = {lang: conversations(lang, options.rows + options.held, 0) for lang in LANGUAGES}
    held = {lang: rows[: options.held] for lang, rows in every.items()}
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    print(json.dumps({"align_turns": None, **found_again(base, tokenizer, held)}), flush=True)
    del base
    for seed in options.seeds:
        for turns in ("all", "last"):
            rows = [row for of in every.values() for row in of[options.held :]]
            model = trained(options.model, turns, rows, seed, options.rate)
            print(json.dumps({"align_turns": turns, "seed": seed, **found_again(model, tokenizer, held)}), flush=True)


if __name__ == "__main__":
    main()
