"""Verify an export: compare the logits of the run with those of the export, loaded by transformers and PEFT alone.

Whatever went wrong between the two (an initialisation that rewrote the base's weights, a resized vocabulary, a key
that a library reads differently) shows in the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM

from cctuning.errors import UserError
from cctuning.model.loading import LOADING_ERRORS, load
from cctuning.model.sites import unwrap

TEXTS = (
    "What is the capital of Kenya? The answer is",
    "Mji mkuu wa Kenya ni upi? Jibu ni",
    "肯尼亚的首都是哪里？答案是",
    "ما هي عاصمة كينيا؟ الجواب هو",
    "1 + 2 + 3 = 6\n2 * 3 =",
)
DRAWN, TOKENS = 3, 24  # sequences of random tokens, added ones among them; tokens of a sequence
IN_FLOAT32 = 12 * 1024**3  # bytes of weights in float32 up to which both run in it: exact, and fast on CPUs
# Largest relative error of logits: of a checkpoint that has been rounded once, and of a model that is too large to run
# in float32 and also rounds in every layer.
TOLERANCE = {torch.float16: (2e-2, 5e-2), torch.bfloat16: (5e-2, 0.2)}  # others: 1e-3


@dataclass(frozen=True)
class Agreement:
    """How an export's logits differ from its run's, over all positions of the probes.

    Attributes:
        error: norm of the difference over the norm of the run's. same: share of positions with the same most likely
            token. positions: their number.
    """

    error: float
    same: float
    positions: int

    def __str__(self) -> str:
        return (
            f"logits within {self.error:.1e} of the run's, most likely token the same in {self.same:.0%} of "
            f"{self.positions} positions"
        )


@torch.no_grad()
def logits(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Logits of all tokens of `rows`, (tokens, vocabulary), in float32 on the CPU, without their mean over the
    vocabulary."""
    device = next(model.parameters()).device
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True).to(device)
    model.eval()
    found = model(input_ids=ids, attention_mask=mask).logits[mask.bool()].float().cpu()
    return found - found.mean(-1, keepdim=True)


def check_export(
    path: str,
    directory: Path,
    kind: str,
    base: str | None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Agreement:
    """Load the run and its export, one after the other, and compare their logits.

    Args:
        path: the run. directory: the export. kind: `merged` or `lora`.
        base, revision: base model of a LoRA, and its revision on the hub.
    """
    source = str(base) if kind == "lora" else str(directory)
    loaded = load(path, trust_remote_code=trust_remote_code)
    small = 4 * sum(parameter.numel() for parameter in loaded.model.parameters()) <= IN_FLOAT32
    dtype = "float32" if small and loaded.model.dtype != torch.float64 else "auto"
    run: Any = loaded.connected or loaded.model
    if dtype == "float32":
        run = run.float()
    vocabulary = int(unwrap(loaded.model).config.get_text_config().vocab_size)
    drawn = torch.randint(vocabulary, (DRAWN, TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    top = [*range(max(0, vocabulary - TOKENS), vocabulary)]  # where tokens were added
    texts = [[token for token in loaded.tokenizer(text)["input_ids"] if token < vocabulary][:TOKENS] for text in TEXTS]
    rows = [row for row in (*texts, *drawn, top) if row]
    wanted = logits(run, rows)
    del loaded, run
    try:  # as a server loads it, without this package
        loader: Any = AutoModelForCausalLM
        options = {"trust_remote_code": trust_remote_code, "revision": revision if kind == "lora" else None}
        model, info = loader.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
        odd = sorted([*info["missing_keys"], *info["unexpected_keys"]])
        if odd and kind != "lora":
            raise ValueError(f"{len(odd)} weights are missing or unexpected, the first {odd[0]}")
        if kind == "lora":
            model = PeftModel.from_pretrained(model, str(directory))
        written = AutoConfig.from_pretrained(source, **options).dtype
        found = logits(model, rows)
    except LOADING_ERRORS as error:
        raise UserError(
            f"the export cannot be loaded ({type(error).__name__}: {error}) and was deleted. Please report this."
        ) from error
    rounds = dtype != "float32"
    allowed = max(TOLERANCE.get(kind, (1e-3, 1e-3))[rounds] for kind in (written, model.dtype))
    missed = float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))
    same = (found.argmax(-1) == wanted.argmax(-1)).float().mean().item()
    if not missed <= allowed:
        raise UserError(
            f"the export does not answer as the run does: its logits differ by {missed:.1e} of their size (rounding "
            f"explains {allowed:.0e}), and the most likely token is the same in {same:.0%} of {len(wanted)} "
            "positions. It was deleted. Please report this with the run's config.yaml; cctuning generate answers with "
            "the run itself."
        )
    return Agreement(missed, same, len(wanted))
