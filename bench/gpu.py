"""The table of speed on one NVIDIA GPU, and tokens a second, MFU and memory at shapes from 1B to 8B.

    python bench/gpu.py [--minutes 9] [--shapes 1B 3B 8B] [--profile] [--output bench/results]
    python bench/gpu.py --device cpu --shapes toy          # the same, end to end, where there is no GPU

Needs torch, transformers, peft, accelerate and this checkout (`pip install --no-deps -e .`, or src/ with its
egg-info on PYTHONPATH); TRL's head is measured where TRL is installed.
Weights are random and made on the device; nothing is downloaded. No section starts after `--minutes`, and each is cut
to the rounds that fit.

For every shape a model with the default connection (`align`) and one with the gated connection are made, references
recorded, and the cases alternate on them: the step with the connection off (`plain`, logits at response tokens only),
transformers' own loss (logits everywhere), TRL's fused head, and the connections. Small shapes train all weights
(fp32, bf16 autocast, fused AdamW); large ones a LoRA of rank 16 on a bf16 base with checkpointing. Memory is measured
before anything else of a shape, each case with a new optimiser and without the weights of the model that it does not
use. MFU counts the arithmetic of flops.py (no recomputation) against the card's dense bf16 peak.

Writes gpu.json.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from cctuning.connection import ConnectionConfig
from cctuning.model.connected import ConnectedModel
from cctuning.model.recorded import Prompts
from cctuning.model.recorded import record as record_references
from cctuning.model.sites import unwrap
from flops import Rows, connected_step, plain_step
from measuring import RESULTS, Ratio, alternate, ratio, record, show, write
from shapes import Shape, llama

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}  # dense bf16
LOSS = "transformers' loss"
TARGETS = {"align": 1.08, "sampled": 1.08}


@dataclass(frozen=True)
class Setup:
    """A shape and how it is trained; rows are as the table has them."""

    shape: Shape
    batch: Rows
    lora: bool
    checkpointing: bool = False


def peak_of(device: str) -> float | None:
    """Dense bf16 operations per second of the card, if it is a known one."""
    card = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((value for name, value in PEAKS.items() if name in card), None)


def rows(count: int, languages: int = 1) -> Rows:
    return Rows(rows=count, tokens=128, answer=64, references=count // languages, reference=64)


SETUPS = {
    "toy": Setup(Shape(2, 64, 176, 4, 2, 512), Rows(4, 32, 16, 4, 16), lora=False),
    "toy-lora": Setup(Shape(2, 64, 176, 4, 2, 512), Rows(4, 32, 16, 4, 16), lora=True, checkpointing=True),
    "1B": Setup(Shape(16, 2048, 8192, 32, 8, 128256), rows(32), lora=False),
    "3B": Setup(Shape(28, 3072, 8192, 24, 8, 128256), rows(32), lora=True, checkpointing=True),
    "8B": Setup(Shape(32, 4096, 14336, 32, 8, 128256), rows(32), lora=True, checkpointing=True),
}


def batch_of(setup: Setup, seed: int, device: str, languages: int = 1) -> dict[str, torch.Tensor]:
    """Random rows of the setup's lengths; `languages` rows share each reference."""
    draw = torch.Generator().manual_seed(seed)
    size, vocab = setup.batch, setup.shape.vocab
    ids = torch.randint(2, vocab, (size.rows, size.tokens), generator=draw)
    labels = ids.clone()
    labels[:, : size.tokens - size.answer] = -100
    references = torch.randint(2, vocab, (size.rows // languages, size.reference), generator=draw)
    made = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "reference_input_ids": references,
        "reference_attention_mask": torch.ones_like(references),
        "reference_index": torch.arange(size.rows) // languages,
    }
    return {name: tensor.to(device) for name, tensor in made.items()}


class Bench:
    """One shape's models, connected, with a step for each case."""

    def __init__(self, setup: Setup, device: str, seed: int) -> None:
        self.setup, self.device, self.cuda = setup, device, device != "cpu"
        self.batch = batch_of(setup, seed, device)
        self.shared = batch_of(setup, seed, device, languages=min(8, setup.batch.rows))
        rank = 64 if setup.lora else None  # a full gate of d x d a layer outweighs a LoRA
        self.connected = self.made(ConnectionConfig("gated", decision_rank=rank), seed)
        self.connected.step, self.connected.total_steps = 50, 101  # `sampled`: half of the rows are fused
        self.aligned = self.made(ConnectionConfig(), seed)
        self.models = (self.connected, self.aligned)
        self.recorded = {name: value for name, value in self.batch.items() if not name.startswith("reference_")}
        self.recorded["reference_row"] = torch.arange(setup.batch.rows, device=device)
        self.optimizer: torch.optim.Optimizer | None = None

    def made(self, config: ConnectionConfig, seed: int) -> ConnectedModel:
        """A connected model with its references recorded."""
        setup = self.setup
        dtype = torch.bfloat16 if setup.lora and self.cuda else torch.float32
        model: Any = llama(setup.shape, seed, self.device, dtype)
        self.head = trl_head(model)
        if setup.lora:
            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"))
        if setup.checkpointing:
            unwrap(model).activation_checkpointing_enable({"use_reentrant": False})
            unwrap(model).enable_input_require_grads()
        connected = ConnectedModel.attach(model, config.settled(True)).train()
        references = self.batch["reference_input_ids"]
        text = torch.tensor([[1, references.shape[1]]]).expand(len(references), 2)
        connected.keep_recorded(record_references(connected, Prompts(references.tolist(), text)))
        return connected

    def cases(self) -> dict[str, Callable[[], torch.Tensor]]:
        """The loss of each case."""
        found: dict[str, Callable[[], torch.Tensor]] = {
            "plain": self.plain,
            LOSS: self.own_loss,
            "align": self.align,
            "sampled": lambda: self.connect("sampled", self.recorded),
            "sampled, references as it trains": lambda: self.connect("sampled", self.batch),
            "sampled, 8 languages, references as it trains": lambda: self.connect("sampled", self.shared),
            "both": lambda: self.connect("both", self.recorded),
        }
        if self.head:
            found["TRL's head"] = self.trl_loss
        return found

    def plain(self) -> torch.Tensor:
        with self.connected.disable_adapter():
            return self.connected(**self.batch, loss_only=True).loss

    def align(self) -> torch.Tensor:
        return self.aligned(**self.recorded, loss_only=True).loss

    def own_loss(self) -> torch.Tensor:
        with self.connected.disable_adapter():
            inputs = {name: self.batch[name] for name in ("input_ids", "attention_mask", "labels")}
            return self.connected.model(**inputs, use_cache=False).loss

    def trl_loss(self) -> torch.Tensor:
        with self.connected.disable_adapter():
            inputs = {name: self.batch[name] for name in ("input_ids", "attention_mask", "labels")}
            out = self.connected.model(**inputs, fused_lm_head=True)
            return -out.log_probs.sum() / out.label_mask.sum()

    def connect(self, paths: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.connected.config.paths = paths
        self.connected.config.reference_weights = "start" if batch is self.recorded else "current"
        return self.connected(**batch, loss_only=True).loss

    def step(self, loss: Callable[[], torch.Tensor]) -> None:
        """Forward, backward, optimiser."""
        if self.optimizer is None:
            trained = [p for model in self.models for p in model.parameters() if p.requires_grad]
            self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=self.cuda)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.cuda):
            value = loss()
        value.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def peak_gib(self, case: str, loss: Callable[[], torch.Tensor]) -> float | None:
        """Peak memory of two steps, the first optimiser state made among them, without the weights of the model that
        the case does not use; None on a CPU."""
        self.optimizer = None
        if not self.cuda:
            self.step(loss)
            return None
        gc.collect()  # checkpointing that is not reentrant leaves cycles, and they hold tensors of the case before
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            self.step(loss)
        other = self.connected if case == "align" else self.aligned
        idle = sum(weight.nbytes for weight in other.parameters())
        return (torch.cuda.max_memory_allocated() - idle) / 2**30

    def profile(self, name: str, losses: dict[str, Callable[[], torch.Tensor]]) -> None:
        """Print where two steps of each of the losses spend their time."""
        for case, loss in losses.items():
            kinds = [torch.profiler.ProfilerActivity.CPU]
            kinds += [torch.profiler.ProfilerActivity.CUDA] if self.cuda else []
            with torch.profiler.profile(activities=kinds) as profiler:
                for _ in range(2):
                    self.step(loss)
                if self.cuda:
                    torch.cuda.synchronize()
            print(f"{name} {case}: two steps")
            order = "self_cuda_time_total" if self.cuda else "self_cpu_time_total"
            print(profiler.key_averages().table(sort_by=order, row_limit=24, max_name_column_width=70), flush=True)


def trl_head(model: Any) -> bool:
    """Give `model` TRL's fused LM head beside its own, where TRL is installed."""
    try:
        from trl.trainer.utils import add_fused_lm_head
    except ImportError:
        return False
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    return True


def operations(setup: Setup, case: str, recomputed: bool) -> float:
    """Floating-point operations that a step of the case has to do, with or without what checkpointing recomputes."""
    size = setup.batch
    how: dict[str, Any] = {"frozen": setup.lora}
    how["checkpointing"] = "not reentrant" if setup.checkpointing and recomputed else None
    if not case.startswith(("sampled", "both")):
        return plain_step(setup.shape, size, **how)
    live = "as it trains" in case
    references = max(1, size.references // (8 if "8 languages" in case else 1)) if live else 0
    size = Rows(size.rows, size.tokens, size.answer, references, size.reference)
    return connected_step(setup.shape, size, both=case == "both", **how)


def training(name: str, options: argparse.Namespace, until: float, peak: float | None) -> dict[str, Any]:
    """Memory, then time, of every case of a shape."""
    setup = SETUPS[name]
    if options.rows:
        setup = replace(setup, batch=replace(setup.batch, rows=options.rows, references=options.rows))
    bench = Bench(setup, options.device, options.seed)
    cases = {case: loss for case, loss in bench.cases().items() if not options.cases or case in options.cases}
    memory = {case: bench.peak_gib(case, loss) for case, loss in cases.items()}
    times = alternate(
        {case: lambda loss=loss: bench.step(loss) for case, loss in cases.items()},
        options.rounds,
        until=until,
        desc=name,
    )
    if options.profile:
        bench.profile(name, {case: cases[case] for case in ("plain", "align", "sampled")})
    found = []
    for case in cases:
        connected = case.startswith(("align", "sampled", "both"))
        floor = operations(setup, case, True) / operations(setup, "plain", True) if connected else None
        rivals = ["plain", "TRL's head"] if connected else ["plain"]
        found += [
            ratio(
                times,
                case,
                rival,
                floor if rival == "plain" else None,
                TARGETS.get(case) if rival == "plain" else None,
            )
            for rival in rivals
            if rival in times and rival != case
        ]
    for one in found:
        one.name = f"{name} {one.name}"
    show(found)
    figures = {}
    for case in cases:
        seconds = statistics.median(wall for wall, _ in times[case])
        achieved = operations(setup, case, False) / seconds
        figures[case] = {
            "seconds": round(seconds, 5),
            "row_tokens_per_second": round(setup.batch.rows * setup.batch.tokens / seconds),
            "tflops": round(achieved / 1e12, 3),
            "mfu": round(achieved / peak, 4) if peak else None,
            "peak_gib": None if memory[case] is None else round(memory[case], 3),
        }
        print(f"{name} {case}: {figures[case]}", flush=True)
    return {"setup": setup, "parameters": setup.shape.parameters, "cases": found, "figures": figures}


def answering(name: str, device: str, seed: int, rounds: int, until: float) -> list[Ratio]:
    """The first token and 32 tokens with what cannot be folded, against the base model, at batch 1 and 8."""
    setup = SETUPS[name]
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    models: dict[str, Any] = {"base": llama(setup.shape, seed, device, dtype).eval()}
    models["folded"] = ConnectedModel.attach(llama(setup.shape, seed, device, dtype).eval()).merge_and_unload()
    for kind, options in (("prompt_end", {"scope": "prompt_end"}), ("adaptive", {"connection": "adaptive"})):
        base = llama(setup.shape, seed, device, dtype).eval()
        models[kind] = ConnectedModel.attach(
            base, ConnectionConfig(**{"connection": "gated", "decision_rank": 16, **options})
        ).eval()
    models["adaptive"].adaptive.set_matrix(torch.eye(setup.shape.width))
    found = []
    for count in (1, 8):
        prompt = batch_of(setup, seed, device)["input_ids"][:1].repeat(count, 1)
        for tokens in (1, 32):
            options: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
            inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "pad_token_id": 0, **options}
            times = alternate(
                {kind: lambda model=model, inputs=inputs: model.generate(**inputs) for kind, model in models.items()},
                rounds,
                until=until,
                desc=f"{name}: batch {count}, {tokens} tokens",
            )
            here = [ratio(times, kind, "base") for kind in models if kind != "base"]
            for one in here:
                one.name = f"{name} {one.name}, batch {count}, {tokens} token{'s' if tokens > 1 else ''}"
            show(here)
            found += here
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9, help="no section starts after that")
    parser.add_argument("--shapes", nargs="+", choices=list(SETUPS), default=["1B", "3B", "8B"])
    parser.add_argument("--rows", type=int, help="rows a step; default 32")
    parser.add_argument("--cases", nargs="+", help="of training; default all")
    parser.add_argument("--answering", choices=[*SETUPS, "none"], help="shape that answers; default the first")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", action="store_true", help="print where steps of each shape spend their time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; run on one, or try it out with --device cpu --shapes toy toy-lora")
    until = time.monotonic() + 60 * options.minutes
    torch.manual_seed(options.seed)
    if options.device == "cpu":
        torch.set_num_threads(1)
    peak = peak_of(options.device)
    result = record(options.seed, peak_flops=peak, shapes={}, answering=[], left_out=[])
    for name in options.shapes:
        if time.monotonic() > until:
            result["left_out"].append(name)
            continue
        try:
            result["shapes"][name] = training(name, options, until, peak)
        except torch.OutOfMemoryError:
            result["left_out"].append(f"{name}: out of memory")
        if options.device == "cuda":
            torch.cuda.empty_cache()
        write("gpu", result, options.output)  # after each shape: what is measured is kept
    if time.monotonic() < until and options.answering != "none":
        chosen = options.answering or options.shapes[0]
        result["answering"] = answering(chosen, options.device, options.seed, options.rounds, until)
    write("gpu", result, options.output)


if __name__ == "__main__":
    main()
