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
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from cctuning.errors import UserError
from cctuning.model.loading import LOADING_ERRORS, Loaded
from cctuning.model.sites import unwrap

TEXTS = (
    "What is the capital of Kenya? The answer is",
    "Mji mkuu wa Kenya ni upi? Jibu ni",
    "肯尼亚的首都是哪里？答案是",
    "ما هي عاصمة كينيا؟ الجواب هو",
    "1 + 2 + 3 = 6\n2 * 3 =",
)
DRAWN, DRAWN_TOKENS = 3, 24  # sequences of any tokens of the vocabulary, added ones among them
# Largest relative error of logits, by the coarsest dtype on the way. Half precision rounds in every layer.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.2}


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


def probes(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[Tensor]:
    """Token ids (1, T) to run through both: texts in several scripts, and tokens drawn from the whole vocabulary."""
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    drawn = torch.randint(vocabulary, (DRAWN, DRAWN_TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    top = [*range(max(0, vocabulary - DRAWN_TOKENS), vocabulary)]  # where a vocabulary was added to
    return [torch.tensor([row]) for row in [*rows, *drawn, top] if row]


@torch.no_grad()
def logits(model: Any, ids: Sequence[Tensor]) -> list[Tensor]:
    """Of each of `ids`: logits (T, vocabulary) in float32 on the CPU, less their mean over the vocabulary."""
    device = next(model.parameters()).device
    model.eval()
    found = []
    for row in ids:
        row = row.to(device)
        out = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0].float().cpu()
        found.append(out - out.mean(-1, keepdim=True))
    return found


def expected(loaded: Loaded) -> tuple[list[Tensor], list[Tensor], torch.dtype]:
    """Probes, what the run makes of them, and the dtype it does so in."""
    model: Any = loaded.connected or loaded.model
    vocabulary = int(unwrap(loaded.model).config.get_text_config().vocab_size)
    ids = probes(loaded.tokenizer, vocabulary)
    return ids, logits(model, ids), loaded.model.dtype


def check_export(
    directory: Path,
    kind: str,
    base: str | None,
    wanted: tuple[list[Tensor], list[Tensor], torch.dtype],
    *,
    trust_remote_code: bool = False,
) -> Agreement:
    """Load what was written and compare it with `wanted`, as `expected` gave it.

    Args:
        directory: the export. kind: `fold`, `lora` or `code`.
        base: of a LoRA: the model it is for.

    Raises:
        UserError: it does not load, or does not answer as the run does.
    """
    try:
        model = _reload(directory, kind, base, trust_remote_code or kind == "code")
    except LOADING_ERRORS as error:
        raise UserError(
            f"the export does not load again ({type(error).__name__}: {error}); nothing was kept. Please report this."
        ) from error
    ids, run, dtype = wanted
    written = logits(model, ids)
    tolerance = max(TOLERANCE.get(kind, 0.0) for kind in (dtype, model.dtype))
    difference = sum(float((a - b).square().sum()) for a, b in zip(run, written, strict=True))
    size = sum(float(a.square().sum()) for a in run)
    same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(run, written, strict=True)])
    agreement = Agreement((difference / max(size, 1e-30)) ** 0.5, same.float().mean().item(), len(same), tolerance)
    if not agreement.error <= tolerance:
        raise UserError(
            f"the export does not answer as the run does: loaded again, its logits differ by {agreement.error:.1e} of "
            f"their size (at most {tolerance:.0e} is rounding), and the likeliest token is the same in "
            f"{agreement.same:.0%} of {agreement.positions} positions; nothing was kept. Please report this with the "
            "run's config.yaml; cctuning generate answers with the run itself."
        )
    return agreement


def _reload(directory: Path, kind: str, base: str | None, trust_remote_code: bool) -> Any:
    """The export as a server loads it, with nothing of ours."""
    name = str(base) if kind == "lora" else str(directory)
    loader: Any = AutoModelForCausalLM
    model, info = loader.from_pretrained(
        name, dtype="auto", trust_remote_code=trust_remote_code, output_loading_info=True
    )
    odd = sorted([*info["missing_keys"], *info["unexpected_keys"]])
    if odd and kind != "lora":
        raise ValueError(f"{len(odd)} weights are missing or not the model's, the first {odd[0]}")
    return PeftModel.from_pretrained(model, str(directory)) if kind == "lora" else model
