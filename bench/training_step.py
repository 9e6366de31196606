"""A training step of the connection against TRL's on the same rows, and against the floor that the arithmetic gives.

    python bench/training_step.py [--rounds 5] [--only plain checkpointing vocabulary lora]

128-token rows, half of them response, with 64-token English prompts, recorded before the first step where the
connection lets them be (the recording is not in the step); a random Llama (toys.SMALL), fp32, one thread.
Two rivals run in every round: TRL's SFTTrainer without the connection, and `connection: none` through our trainer
(`plain`), which is the harder one: without Triton TRL's fused head scores every position and recomputes it in
backward, while ours sees response tokens alone, so part of a ratio against TRL on a CPU is the head's and not the
connection's. The floor of each ratio counts for each side what it really computes (flops.py).

Writes bench/results/training_step.json.
"""

from __future__ import annotations

import gc
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import LoraConfig

from cctuning import ConnectionConfig
from flops import Rows, connected_step, plain_step, trl_step
from measuring import Ratio, alternate, arguments, one_thread, ratio, record, show, write
from shapes import SMALL, Shape, llama
from toys import ours, rows, stepper, tokenizer, trl

BATCH, TOKENS, ANSWER, REFERENCE = 8, 128, 64, 64
NONE = ConnectionConfig(connection="none")
SAMPLED = ConnectionConfig("gated")
CASES: dict[str, tuple[ConnectionConfig, int, float | None]] = {  # name -> connection, rows a reference, target
    "align": (ConnectionConfig(), 1, 1.05),
    "sampled": (SAMPLED, 1, 1.05),
    "sampled, 8 languages": (SAMPLED, 8, 1.05),
    "sampled, references as it trains": (ConnectionConfig("gated", reference_weights="current"), 1, None),
    "student": (ConnectionConfig("gated", paths="student"), 1, None),
    "both": (ConnectionConfig("gated", paths="both"), 1, None),
    "adaptive": (ConnectionConfig(connection="adaptive"), 1, None),
}
GROUPS: dict[str, dict[str, Any]] = {
    "plain": {"cases": list(CASES)},
    "checkpointing, not reentrant": {"cases": ["sampled"], "checkpointing": "not reentrant", "target": 1.05},
    "checkpointing, reentrant": {"cases": ["sampled"], "checkpointing": "reentrant", "target": 1.05},
    "vocabulary 128k": {"cases": ["sampled"], "vocab": 131072, "target": 1.0, "rounds": 3},  # its steps are long
    "lora": {"cases": ["align", "sampled"], "lora": True, "target": 1.06},
}


def floors(case: str, shape: Shape, shared: int, group: dict[str, Any]) -> tuple[float | None, float | None]:
    """What the case has to cost against TRL's step (as it runs here, without Triton), and against plain SFT."""
    recorded = CASES[case][0].reference_weights is None  # references that were recorded cost a step nothing
    batch = Rows(BATCH, TOKENS, ANSWER, 0 if recorded else BATCH // shared, REFERENCE)
    how = {"checkpointing": group.get("checkpointing"), "frozen": group.get("lora", False)}
    if case == "adaptive":
        return None, None
    if case == "align":
        mine = plain_step(shape, batch, **how)
        return mine / trl_step(shape, batch, compact=False, **how), 1.0
    mine = connected_step(shape, batch, both=case == "both", **how)
    return mine / trl_step(shape, batch, compact=False, **how), mine / plain_step(shape, batch, **how)


def measure(name: str, group: dict[str, Any], rounds: int, seed: int, folder: Path, shape: Shape) -> list[Ratio]:
    """All cases of a group against both rivals, alternating."""
    shape = replace(shape, vocab=group.get("vocab", shape.vocab))
    made = tokenizer(shape.vocab)
    peft = LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear") if group.get("lora") else None
    checkpointing = group.get("checkpointing")

    def data(shared: int) -> Any:
        return rows(2 * BATCH, TOKENS, ANSWER, REFERENCE, shape.vocab, shared, seed)

    steps = {
        "TRL": stepper(trl(llama(shape, seed), data(1), made, folder, BATCH, peft), checkpointing),
        "plain": stepper(ours(llama(shape, seed), data(1), made, folder, BATCH, NONE, peft), checkpointing),
    }
    for case in group["cases"]:
        connection, shared, _ = CASES[case]
        trainer = ours(llama(shape, seed), data(shared), made, folder, BATCH, connection, peft)
        steps[case] = stepper(trainer, checkpointing)
    times = alternate(steps, min(rounds, group.get("rounds", rounds)), desc=name)
    found = [ratio(times, "plain", "TRL")]
    for case in group["cases"]:
        _, shared, target = CASES[case]
        target = group.get("target", target)
        against_trl, against_plain = floors(case, shape, shared, group)
        found += [
            ratio(times, case, "TRL", against_trl, target),
            ratio(times, case, "plain", against_plain),
        ]
    for one in found:
        one.name = one.name if name == "plain" else f"{one.name}, {name}"
    return found


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--only", nargs="+", help="groups whose name starts with one of these")
    options = parser.parse_args()
    one_thread(options.seed)
    result = record(
        options.seed,
        shape=SMALL,
        batch={"rows": BATCH, "tokens": TOKENS, "answer": ANSWER, "reference": REFERENCE},
        cases=[],
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, group in GROUPS.items():
            if options.only and not any(name.startswith(start) for start in options.only):
                continue
            found = measure(name, group, options.rounds, options.seed, Path(folder), SMALL)
            show(found)
            result["cases"] += found
            gc.collect()  # trainers point at themselves
            write("training_step", result, options.output)  # after each group: what is measured is kept


if __name__ == "__main__":
    main()
