"""Memory and communication of a step on many devices, from formulas, and the plan for 70B.

    python bench/scale_plan.py [--gpus 8 64]

Everything is per device (rank) and in bytes. P: weights of the base; C: of the connection; L layers of width d, inner
width f, kv the share of key/value heads; B rows a device of T tokens, R references of S tokens; N devices.

    weights, full      4 P / N  sharded (fp32 masters); bf16 copies exist of two gathered layers at a time
    weights, LoRA      2 P / N  sharded (frozen, bf16)
    gradients          4 (trained) / N
    Adam               8 (trained) / N
    activations        2 (B T d) L with checkpointing (a layer's input each), and one layer while it is recomputed
    references         a vector per reference and layer: 4 (R d) L recorded, 2 (R d) L with `live` (`anchor`)
    logits             (response tokens) V (4 + 4): fp32, and their gradient
    FSDP2 traffic      (gathers) 2 P (N - 1) / N received, plus 2 or 4 (trained) (N - 1) / N for gradients

Gathers a step: each layer once forward and once for backward, as in plain SFT. With `live` (references run in every
step, `record_references: false`) once more. tests/model/test_sharded_plan.py compares the formulas with tensors.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from shapes import Shape

GIB = 1024**3
LLAMA_70B = Shape(layers=80, width=8192, ffn=28672, heads=64, kv_heads=8, vocab=128256)


@dataclass(frozen=True)
class Run:
    """What is trained, on what.

    `rows` of `tokens` tokens (`answer` of them response) and `references` references of `reference` tokens, a device.
    `rank`: of the LoRA, 0 for full weights. `decision_rank`: 0 for a full gate. `live`: references are not recorded.
    """

    shape: Shape
    devices: int
    rank: int = 16
    transform_rank: int = 16
    decision_rank: int = 64
    rows: int = 1
    tokens: int = 2048
    answer: int = 1024
    references: int = 1
    reference: int = 512
    live: bool = False

    @property
    def connection(self) -> int:
        """C: weights of the connection, low-rank transform and gate, at every layer."""
        d = self.shape.width
        gate = d + (2 * d * self.decision_rank if self.decision_rank else d * d)
        return self.shape.layers * (2 * d * self.transform_rank + gate)

    @property
    def lora(self) -> int:
        """Weights of a LoRA on all linear layers of the decoder."""
        d, f, narrow = self.shape.width, self.shape.ffn, self.shape.width * self.shape.kv_heads // self.shape.heads
        ends = 2 * (d + d) + 2 * (d + narrow) + 3 * (d + f)
        return self.shape.layers * self.rank * ends

    @property
    def trained(self) -> int:
        return self.connection + (self.lora if self.rank else self.shape.parameters)


def memory(run: Run) -> dict[str, float]:
    """Bytes on one device in a step under FSDP2, with checkpointing, by part."""
    s = run.shape
    base = 2 * s.parameters if run.rank else 4 * s.parameters
    added = 4 * (run.trained if run.rank else run.connection)
    tokens = run.rows * run.tokens
    narrow = s.width * s.kv_heads // s.heads
    inside = 2 * tokens * (6 * s.width + 2 * narrow + 4 * s.ffn)  # a layer while it is recomputed, attention not kept
    return {
        "weights": (base + added) / run.devices,
        "gradients": 4 * run.trained / run.devices,
        "optimizer": 8 * run.trained / run.devices,
        "two gathered layers": 2 * 2 * s.layer_weights,
        "activations": 2 * tokens * s.width * s.layers + inside,
        "references": (2 if run.live else 4) * run.references * s.width * s.layers,
        "logits": run.rows * run.answer * s.vocab * 8,
    }


def traffic(run: Run, plain: bool = False) -> dict[str, float]:
    """Bytes that one device receives in a step under FSDP2; `plain`: in plain SFT."""
    share = (run.devices - 1) / run.devices
    gathers = 3 if run.live and not plain else 2
    trained = 0 if plain and run.rank == 0 else run.connection
    return {
        "weights": gathers * 2 * (run.shape.parameters + trained) * share,
        "gradients": 4 * run.trained * share,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64])
    args = parser.parse_args()
    runs = {
        f"{name}, {devices} GPUs": Run(LLAMA_70B, devices, rank=rank)
        for devices in args.gpus
        for name, rank in (("LoRA", 16), ("full", 0))
    }
    parts = list(memory(next(iter(runs.values()))))
    print("| GiB a device | " + " | ".join(runs) + " |\n| --- |" + " ---: |" * len(runs))
    for part in parts:
        print(f"| {part} | " + " | ".join(f"{memory(run)[part] / GIB:.2f}" for run in runs.values()) + " |")
    print("| **sum** | " + " | ".join(f"{sum(memory(run).values()) / GIB:.1f}" for run in runs.values()) + " |")
    for title, plain in (("received a step", False), ("the same, plain SFT", True)):
        print(
            f"| {title} | " + " | ".join(f"{sum(traffic(r, plain).values()) / GIB:.0f}" for r in runs.values()) + " |"
        )


if __name__ == "__main__":
    main()
