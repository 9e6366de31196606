"""A training step with parallel text beside answered rows, against plain SFT on the answered rows alone.

    python bench/parallel_text.py [--rounds 5]

Each of ROWS answered rows (128 tokens, half of them response) brings three pairs of parallel text of 64 tokens, whose
references are recorded before the first step (not in the time). `connection: align` with its defaults, a random Llama
(shapes.SMALL), fp32, one thread. Rows without an answer skip the layers above the last aligned one; `all layers` is
the same step without that. Padded, a text takes as many positions as the longest row; with `padding_free` only its
own. The floor counts the positions that are computed, forward and backward up to the last aligned layer, and nothing
for the error itself.

Writes bench/results/parallel_text.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig

from cctuning import CCConfig, CCTrainer, ConnectionConfig
from flops import Rows, layers_step, plain_step
from measuring import Ratio, alternate, arguments, one_thread, ratio, record, show, write
from shapes import SMALL, llama
from toys import options, ours, rows, stepper, tokenizer

ROWS, TOKENS, ANSWER, TEXT, PAIRS = 4, 128, 64, 64, 3
NONE = ConnectionConfig(connection="none")


def pairs(count: int, seed: int) -> Dataset:
    """Parallel text of random words."""
    made = rows(count, TEXT + 1, 1, TEXT, SMALL.vocab, seed=seed)
    return Dataset.from_dict({"text": made["prompt"], "reference": made["prompt_en"], "lang": made["lang"]})


def aligned(folder: Path, seed: int, peft: Any, skip: bool = True, **more: Any) -> CCTrainer:
    """A trainer on answered rows with parallel text."""
    answered = rows(2 * ROWS, TOKENS, ANSWER, TEXT, SMALL.vocab, seed=seed).select_columns(["prompt", "completion"])
    args = CCConfig(**options(folder, ROWS), parallel_rows=PAIRS, **more)
    trainer = CCTrainer(
        llama(SMALL, seed),
        args,
        ConnectionConfig(),
        train_dataset=answered,
        parallel_dataset=pairs(8 * ROWS, seed + 1),
        processing_class=tokenizer(SMALL.vocab),
        peft_config=peft,
    )
    assert trainer.connected.may_leave
    trainer.connected.may_leave = skip
    return trainer


def floor(frozen: bool, skip: bool, positions: int) -> float:
    """Operations of a step over those of plain SFT."""
    layers = ConnectionConfig().layers_of(SMALL.layers)
    share = (max(layers) + 1) / SMALL.layers if skip else 1.0
    plain = plain_step(SMALL, Rows(ROWS, TOKENS, ANSWER, 0, TEXT), frozen=frozen)
    return 1 + share * layers_step(SMALL, PAIRS * ROWS, positions, None, frozen, plain=True) / plain


def measure(lora: bool, rounds: int, seed: int, folder: Path) -> list[Ratio]:
    """The step with parallel text against plain SFT, and with all layers against itself."""
    peft = LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear") if lora else None
    made = tokenizer(SMALL.vocab)
    answered = rows(2 * ROWS, TOKENS, ANSWER, TEXT, SMALL.vocab, seed=seed)
    steps = {
        "plain": stepper(ours(llama(SMALL, seed), answered, made, folder, ROWS, NONE, peft)),
        "parallel text, all layers": stepper(aligned(folder, seed, peft, skip=False)),
        "parallel text": stepper(aligned(folder, seed, peft)),
        "parallel text, padding_free": stepper(aligned(folder, seed, peft, padding_free=True)),
    }
    times = alternate(steps, rounds, desc="LoRA" if lora else "full")
    whole, padded, free = floor(lora, False, TOKENS), floor(lora, True, TOKENS), floor(lora, True, TEXT)
    found = [
        ratio(times, "parallel text, all layers", "plain", whole),
        ratio(times, "parallel text", "plain", padded),
        ratio(times, "parallel text, padding_free", "plain", free),
    ]
    for one in found:
        one.name += ", lora" if lora else ""
    return found


def main() -> None:
    given = arguments(__doc__, rounds=5).parse_args()
    one_thread(given.seed)
    shape = {"rows": ROWS, "tokens": TOKENS, "answer": ANSWER, "text": TEXT, "pairs": PAIRS}
    result = record(given.seed, shape=SMALL, batch=shape, cases=[])
    with tempfile.TemporaryDirectory() as folder:
        for lora in (False, True):
            found = measure(lora, given.rounds, given.seed, Path(folder))
            show(found)
            result["cases"] += found
            write("parallel_text", result, given.output)


if __name__ == "__main__":
    main()
