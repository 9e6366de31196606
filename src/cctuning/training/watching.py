"""Seeing training by language: the evaluation loss of each, and what the model answers at each evaluation."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from cctuning.training.sampling import undisturbed

SAMPLES_FILE = "samples.jsonl"
ANSWER_TOKENS = 64


class LanguageLoss:
    """Loss a token of the student pass, language by language, of the evaluation that is under way.

    Rows are kept by their number, so that one which accelerate hands to two processes counts once.
    """

    def __init__(self) -> None:
        self.languages: dict[int, str] = {}
        self.rows: dict[int, tuple[float, int]] = {}

    def start(self, dataset: Any) -> None:
        """Begin anew, on `dataset` (of `encode_dataset`; of anything else no language is known)."""
        known = isinstance(dataset, Dataset) and {"row", "lang"} <= set(dataset.column_names)
        self.languages = dict(zip(dataset["row"], dataset["lang"], strict=True)) if known else {}
        self.rows = {}

    def add(self, inputs: Mapping[str, Tensor], row_loss: Tensor) -> None:
        """Take in a batch; `row_loss` (B,) is the student's, summed over each row's tokens."""
        tokens = (inputs["labels"][:, 1:] != -100).sum(dim=1)
        for row, loss, count in zip(inputs["row"].tolist(), row_loss.tolist(), tokens.tolist(), strict=True):
            self.rows[row] = (loss, count)

    def result(self, prefix: str) -> dict[str, float]:
        """`<prefix>_loss_<language>` of each language, where there are several. A collective."""
        rows = self.rows
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, rows)
            rows = {row: pair for part in parts for row, pair in part.items()}
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        for row, (loss, count) in rows.items():
            language = self.languages.get(row)
            if language and count:
                sums[language][0] += loss
                sums[language][1] += count
        found = {f"{prefix}_loss_{language}": loss / count for language, (loss, count) in sorted(sums.items())}
        return found if len(found) > 1 else {}


class SampleAnswers(TrainerCallback):
    """At each evaluation the answers to a few of its prompts a language, greedy, by the pass that inference runs:
    lines of RUN/samples.jsonl, and text in TensorBoard."""

    def __init__(self, trainer: Any, path: Path, each: int) -> None:
        """
        Args:
            trainer: a `CCTrainer` with evaluation rows. each: rows a language.
        """
        self.trainer, self.path = trainer, path
        self.rows: list[dict[str, Any]] = []
        sets = trainer.eval_dataset
        counts: dict[str, int] = defaultdict(int)
        for dataset in sets.values() if isinstance(sets, dict) else [sets]:
            for row in dataset:
                if counts[row["lang"]] < each and any(label != -100 for label in row["labels"]):
                    counts[row["lang"]] += 1
                    self.rows.append(row)

    @torch.no_grad()
    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Answer, write, and leave generators and modes as they were."""
        if not state.is_world_process_zero:
            return
        trainer, tokenizer = self.trainer, self.trainer.processing_class
        connected = trainer.connected
        training = connected.training
        connected.eval()
        lines = []
        with undisturbed():
            for row in self.rows:
                prompt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
                ids = torch.tensor([prompt], device=args.device)
                with trainer.compute_loss_context_manager():
                    made = connected.generate(
                        ids,
                        torch.ones_like(ids),
                        max_new_tokens=ANSWER_TOKENS,
                        do_sample=False,
                        pad_token_id=tokenizer.pad_token_id,
                        eos_token_id=self._ends(),
                    )[0, len(prompt) :]
                wanted = [label for label in row["labels"] if label != -100]
                lines.append(
                    {
                        "step": state.global_step,
                        "lang": row["lang"],
                        "prompt": tokenizer.decode(prompt),
                        "answer": tokenizer.decode(made, skip_special_tokens=True).strip(),
                        "expected": tokenizer.decode(wanted, skip_special_tokens=True).strip(),
                    }
                )
        connected.train(training)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        for board in trainer.callback_handler.callbacks:
            if getattr(board, "tb_writer", None) is not None:
                for number, line in enumerate(lines):
                    text = f"**{line['prompt']}**\n\n{line['answer']}\n\n(expected: {line['expected']})"
                    board.tb_writer.add_text(f"answers/{line['lang']}-{number}", text, state.global_step)

    def _ends(self) -> list[int]:
        config = self.trainer.model.generation_config
        known = config.eos_token_id if config is not None else None
        known = known if isinstance(known, list) else [] if known is None else [known]
        own = self.trainer.processing_class.eos_token_id
        return sorted({*known, *([] if own is None else [own])})
