"""Row tokens per second and MFU on one NVIDIA GPU: packed with FlashAttention and sdpa, padded, and TRL packed.

    CC_TUNING_DATA=DATA python bench/gpu_packing.py [--shapes 1B 8B] [--rounds 5] [--bin 16384]
    CC_TUNING_DATA=DATA python bench/gpu_packing.py --device cpu --shapes toy --bin 1024   # end to end, anywhere

Rows have the lengths of Alpaca, as in packing.py; a round is one epoch of them, BINS bins of `--bin` tokens, with each
case. Small shapes train all weights (fp32, bf16 autocast), large ones a LoRA of rank 16 on a bf16 base with
checkpointing, both trainers with the same options. FlashAttention is PyTorch's own kernel (varlen.py). The padded case
has batches of PADDED rows. MFU counts the arithmetic of plain SFT (flops.py, no recomputation) of the rows' own tokens
against the card's dense bf16 peak, whatever a case computes besides.

Writes gpu_packing.json.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig

from cctuning import ConnectionConfig
from flops import Rows, plain_step
from gpu import SETUPS, Setup, peak_of
from measuring import RESULTS, alternate, one_thread, ratio, record, show, write
from packing import ALIGN, LIMIT, NONE, epoch, lengths
from shapes import llama
from toys import ours, rows, tokenizer, trl

BINS, PADDED = 2, 32
MANY = 100_000  # rows to draw lengths from


def drawn(tokens: int, seed: int) -> list[tuple[int, int]]:
    """Lengths of rows of Alpaca that fill `BINS` bins of so many tokens."""
    found, room = [], BINS * tokens
    for prompt, answer in lengths(MANY, seed):
        if prompt + answer > room:
            break
        found.append((prompt, answer))
        room -= prompt + answer
    return found


def cases_of(setup: Setup, found: list[tuple[int, int]], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The epochs to time, each with a separate model."""
    cuda = options.device == "cuda"
    shape = setup.shape if cuda else replace(setup.shape, vocab=8192)
    flash = "sdpa"
    if cuda:
        from varlen import register

        flash = register()
    made = tokenizer(shape.vocab)
    data: Dataset = concatenate_datasets(
        [
            rows(1, prompt + answer, answer, prompt, shape.vocab, seed=options.seed + number)
            for number, (prompt, answer) in enumerate(found)
        ]
    )
    peft = LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear") if setup.lora else None
    checkpointing = "not reentrant" if setup.checkpointing else None
    dtype = torch.bfloat16 if setup.lora and cuda else torch.float32
    packed = {"packing": True, "max_length": options.bin, "train_sampling_strategy": "random", "bf16": cuda}

    def model(attention: str) -> Any:
        made = llama(shape, options.seed, options.device, dtype)
        made.config._attn_implementation = attention  # set_attn_implementation takes known kernels only
        return made

    def our(connection: ConnectionConfig, attention: str, batch: int = 1, **more: Any) -> Callable[[], None]:
        trainer = ours(model(attention), data, made, folder, batch, connection, peft, **(more or packed))
        return epoch(trainer, checkpointing)

    theirs = trl(model(flash), data, made, folder, 1, peft, **packed)
    found_cases = {
        "TRL packed": epoch(theirs, checkpointing),
        "packed": our(ALIGN, flash),
        "packed, sdpa": our(ALIGN, "sdpa"),
        "padded": our(ALIGN, "sdpa", PADDED, bf16=cuda),
    }
    if not setup.lora:
        found_cases["plain, packed"] = our(NONE, flash)
    return found_cases


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ratios, rates and MFU of a shape."""
    setup = SETUPS[name]
    found = drawn(options.bin, options.seed)
    times = alternate(cases_of(setup, found, options, folder), options.rounds, desc=name)
    ratios = [ratio(times, "packed", "TRL packed", target=1.0), ratio(times, "packed", "padded", target=0.67)]
    ratios += [ratio(times, case, "TRL packed") for case in times if case not in ("packed", "padded", "TRL packed")]
    for one in ratios:
        one.name = f"{name} {one.name}"
    show(ratios)
    tokens = sum(map(sum, found))
    arithmetic = sum(
        plain_step(setup.shape, Rows(1, prompt + answer, answer, 0, 0), frozen=setup.lora) for prompt, answer in found
    )
    figures, peak = {}, peak_of(options.device)
    for case, timed in times.items():
        seconds = sorted(wall for wall, _ in timed)[len(timed) // 2]
        mfu = round(arithmetic / seconds / peak, 4) if peak else None
        figures[case] = {"row_tokens_per_second": round(tokens / seconds), "mfu": mfu}
        print(f"{name} {case}: {figures[case]}", flush=True)
    return {
        "setup": setup, "rows": len(found), "tokens": tokens, "longest": max(map(sum, found)), "cases": ratios,
        "figures": figures,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=list(SETUPS), default=["1B", "8B"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--bin", type=int, default=16384, help="tokens of a packed sequence")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.device == "cpu":
        one_thread(options.seed)
    result = record(options.seed, bin=options.bin, padded_rows=PADDED, limit=LIMIT, shapes={})
    with tempfile.TemporaryDirectory() as folder:
        for name in options.shapes:
            result["shapes"][name] = measure(name, options, Path(folder))
            write("gpu_packing", result, options.output)
            gc.collect()  # trainers point at themselves
            if options.device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
