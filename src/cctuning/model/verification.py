"""An export held against its run: a few prompts through both, the export loaded anew with transformers and PEFT alone.

What can go wrong between a run and its export is more than anybody lists: a start that rewrote the base's weights, a
vocabulary that was resized, a library that reads a key otherwise. All of it shows in the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from cctuning.errors import UserError
from cctuning.model.loading import LOADING_ERRORS, load, torch_dtype
from cctuning.model.sites import unwrap

TEXTS = (
    "What is the capital of Kenya? The answer is",
    "Mji mkuu wa Kenya ni upi? Jibu ni",
    "肯尼亚的首都是哪里？答案是",
    "ما هي عاصمة كينيا؟ الجواب هو",
    "1 + 2 + 3 = 6\n2 * 3 =",
)
DRAWN, TOKENS = 3, 24  # sequences of any tokens of the vocabulary, added ones among them; tokens of a sequence
IN_FLOAT32 = 12 * 1024**3  # bytes of weights in float32 up to which both are run in it: exact, and fast on processors
# Largest relative error of logits. A checkpoint in half precision has been rounded once; models too large to be run in
# float32 also round in every layer.
ROUNDED_ONCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
ROUNDED = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.2}


@dataclass(frozen=True)
class Agreement:
    """How an export's logits differ from its run's, over all positions of the probes.

    Attributes:
        error: norm of the difference by norm of the run's, both less their mean over the vocabulary (which no
            probability depends on).
        same: share of positions whose likeliest token is the same.
        positions: how many there were.
        allowed: the largest `error` that rounding explains.
    """

    error: float
    same: float
    positions: int
    allowed: float

    def __str__(self) -> str:
        return (
            f"logits within {self.error:.1e} of the run's, likeliest token the same in {self.same:.0%} of "
            f"{self.positions} positions"
        )


def probes(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[list[int]]:
    """Token ids to run through both: texts in several scripts, and tokens drawn from the whole vocabulary."""
    rows = [tokenizer(text)["input_ids"][:TOKENS] for text in TEXTS]
    drawn = torch.randint(vocabulary, (DRAWN, TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    top = [*range(max(0, vocabulary - TOKENS), vocabulary)]  # where a vocabulary was added to
    return [row for row in [*rows, *drawn, top] if row]


@torch.no_grad()
def logits(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Of all tokens of `rows`, one after the other: logits (tokens, vocabulary) in float32 on the CPU, less their mean
    over the vocabulary."""
    device = next(model.parameters()).device
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    model.eval()
    found = model(input_ids=ids, attention_mask=mask).logits[mask.bool()].float().cpu()
    return found - found.mean(-1, keepdim=True)


def check_export(
    path: str, directory: Path, kind: str, base: str | None, *, trust_remote_code: bool = False
) -> Agreement:
    """Load the run and what was written of it, one after the other, and compare their logits.

    Args:
        path: the run. directory: the export. kind: `merged`, `lora` or `code`.
        base: of a LoRA: the model it is for.

    Raises:
        UserError: the export does not load, or does not answer as the run does.
    """
    source = str(base) if kind == "lora" else str(directory)
    written = torch_dtype(str(_config(source, trust_remote_code or kind == "code").dtype).removeprefix("torch."))
    loaded = load(path, trust_remote_code=trust_remote_code)
    small = 4 * sum(parameter.numel() for parameter in loaded.model.parameters()) <= IN_FLOAT32
    dtype = "float32" if small and loaded.model.dtype != torch.float64 else "auto"
    run: Any = loaded.connected or loaded.model
    if dtype == "float32":
        run = run.float()
    rows = probes(loaded.tokenizer, int(unwrap(loaded.model).config.get_text_config().vocab_size))
    wanted = logits(run, rows)
    del loaded, run
    try:
        model = _reload(directory, kind, source, dtype, trust_remote_code or kind == "code")
        found = logits(model, rows)
    except LOADING_ERRORS as error:
        raise UserError(
            f"the export does not load again ({type(error).__name__}: {error}); nothing was kept. Please report this."
        ) from error
    tolerance = ROUNDED_ONCE if dtype == "float32" else ROUNDED
    allowed = max(tolerance.get(kind, 1e-3) for kind in (written or torch.float32, model.dtype))
    missed = float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))
    same = (found.argmax(-1) == wanted.argmax(-1)).float().mean().item()
    agreement = Agreement(missed, same, len(wanted), allowed)
    if not missed <= allowed:
        raise UserError(
            f"the export does not answer as the run does: loaded again, its logits differ by {missed:.1e} of their "
            f"size (at most {allowed:.0e} is rounding), and the likeliest token is the same in {same:.0%} of "
            f"{len(wanted)} positions; nothing was kept. Please report this with the run's config.yaml; cctuning "
            "generate answers with the run itself."
        )
    return agreement


def _config(source: str, trust_remote_code: bool) -> Any:
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except LOADING_ERRORS as error:
        raise UserError(f"the export's config does not load again ({error}); nothing was kept.") from error


def _reload(directory: Path, kind: str, source: str, dtype: str, trust_remote_code: bool) -> Any:
    """The export as a server loads it, with nothing of ours."""
    loader: Any = AutoModelForCausalLM
    model, info = loader.from_pretrained(
        source,
        dtype="auto" if dtype == "auto" else torch_dtype(dtype),
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    odd = sorted([*info["missing_keys"], *info["unexpected_keys"]])
    if odd and kind != "lora":
        raise ValueError(f"{len(odd)} weights are missing or not the model's, the first {odd[0]}")
    return PeftModel.from_pretrained(model, str(directory)) if kind == "lora" else model
