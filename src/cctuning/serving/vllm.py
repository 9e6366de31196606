"""Whether vLLM will take a LoRA export: what can be told from its files, without vLLM and without a GPU.

What vLLM refuses of an adapter was read in its source (vllm/config/lora.py, vllm/lora/peft_helper.py and
vllm/lora/utils.py), and never run here. That it supports LoRA on this family, and that it answers as PEFT does, only
a GPU can tell.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

# What --max-lora-rank may be; an adapter's own rank may be any number up to it.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
FILES = ("adapter_config.json", "adapter_model.safetensors")
WEIGHT = re.compile(r"base_model\.model\..+\.(lora_A|lora_B)\.weight|base_model\.model\..+\.lora_embedding_[AB]")


@dataclass(frozen=True)
class Readiness:
    """What vLLM will make of an adapter.

    Attributes:
        problems: why it will not take it; empty where it will.
        max_rank: what --max-lora-rank must be at least; None where that is among the problems.
    """

    problems: list[str]
    max_rank: int | None

    def __str__(self) -> str:
        if self.problems:
            return f"vLLM: no, because {'; and '.join(self.problems)}"
        return f"vLLM: ready (--enable-lora --max-lora-rank {self.max_rank}); checked from its files, not on a GPU"


def check_vllm(directory: Path) -> Readiness:
    """Read a PEFT LoRA as vLLM will."""
    missing = [name for name in FILES if not (directory / name).is_file()]
    if missing:
        return Readiness([f"{', '.join(missing)} is missing"], None)
    try:
        config = json.loads((directory / FILES[0]).read_text(encoding="utf-8"))
        with safe_open(directory / FILES[1], framework="pt") as weights:
            shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 (no mapping)
    except (ValueError, SafetensorError) as error:
        return Readiness([f"its files cannot be read ({error})"], None)
    problems = []
    for key, told in (
        ("modules_to_save", "it carries whole modules (modules_to_save)"),
        ("use_dora", "it is a DoRA"),
        ("lora_bias", "its LoRA has biases (lora_bias), because the base's projections have; use --format merged"),
    ):
        if config.get(key):
            problems.append(told)
    if config.get("bias", "none") != "none":
        problems.append(f"it trained the base's biases (bias: {config['bias']})")
    odd = sorted(name for name in shapes if not WEIGHT.fullmatch(name) and not name.endswith(".lora_B.bias"))
    if odd:
        problems.append(f"{len(odd)} of its tensors have names that it does not know (first: {odd[0]})")
    rank = max((shape[0] for name, shape in shapes.items() if name.endswith("lora_A.weight")), default=0)
    allowed = next((one for one in RANKS if max(rank, config.get("r", 0)) <= one), None)
    if rank == 0:
        problems.append("there is no LoRA weight in it")
    elif allowed is None:
        problems.append(f"its rank is {rank}, and {RANKS[-1]} is the most; use --format merged")
    return Readiness(problems, allowed)
