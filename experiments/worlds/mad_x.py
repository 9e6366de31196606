"""`mad-x` (Pfeiffer et al. 2020, arXiv 2005.00052): the base frozen, an adapter for each language, one for the task.

Built on PEFT, because the `adapters` library does not work with transformers 5. What that and the lab's rows change is
said at `mad_x`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from trl import SFTTrainer

from cctuning.connection import ConnectionConfig
from cctuning.demo.base import joint_text
from cctuning.demo.tuning import right
from cctuning.demo.worlds import ENGLISH
from cctuning.model.loading import Loaded, load_base, load_tokenizer
from cctuning.training import CCTrainer
from experiments.worlds.rivals import Answers, Job, tokens_read

TASK = "task"


def lora() -> LoraConfig:
    """An adapter, the same for a language and for the task: what `tune: lora` makes by default."""
    return LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")


class MadXTrainer(CCTrainer):
    """Plain SFT of the task's adapter, each row over its own language's frozen one; a batch mixes languages.

    Args:
        languages: each training row's. Others: as the parent's.
    """

    def __init__(self, *args: Any, languages: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.languages = languages

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The parent's, language by language: each part is a sum over the tokens of the whole step."""
        spoken = [self.languages[row] for row in inputs["row"].tolist()]
        loss: Any = 0
        for lang in sorted(set(spoken)):
            speak(self.model, lang)
            own = torch.tensor([one == lang for one in spoken], device=inputs["row"].device)
            part = {name: inputs[name][own] for name in ("input_ids", "attention_mask", "labels", "row")}
            loss = loss + super().compute_loss(model, part, False, num_items_in_batch)
        return loss


def speak(model: PeftModel, lang: str) -> None:
    """From here on: the language's adapter, frozen, and the task's."""
    inside: Any = model.base_model  # PeftModel's own verb takes one adapter
    inside.set_adapter([lang, TASK])
    model.set_requires_grad(lang, False)


def train_mad_x(job: Job) -> tuple[int, PeftModel]:
    """Tokens read, and the base with an adapter for each language and one for the task, all trained."""
    torch.manual_seed(job.seed)
    tokenizer, text = load_tokenizer(str(job.base)), joint_text(job.world, job.config)
    model: Any = get_peft_model(load_base(str(job.base)), lora(), adapter_name=TASK)
    tokens = 0
    for lang, lines in text.items():
        model.add_adapter(lang, lora())
        model.set_adapter(lang)
        args = job.args(lang)
        args.learning_rate, args.max_steps = job.settings["language_rate"], job.settings["language_steps"]
        reader = SFTTrainer(
            model=model, args=args, train_dataset=Dataset.from_dict({"text": lines}), processing_class=tokenizer
        )
        reader.train()
        tokens += tokens_read(reader)
    speak(model, ENGLISH)  # any language: what trains is the task's
    trainer = MadXTrainer(
        model=model,
        args=job.args(TASK),
        connection_config=ConnectionConfig(connection="none"),
        train_dataset=Dataset.from_list(job.rows),
        processing_class=tokenizer,
        languages=[row["lang"] for row in job.rows],
    )
    trainer.train()
    return tokens + tokens_read(trainer), model


def mad_x(job: Job) -> tuple[int, Answers]:
    """Train the adapters and answer, each question over its language's and the task's.

    Settings: `language_rate`, `language_steps`: learning rate and steps of each language's adapter, which reads by
    plain language modelling what the base read in that language and nothing else.

    Against the paper: PEFT has no bottleneck adapters, so each is a LoRA on every linear layer of the decoder. The
    task's lies beside the language's (their changes to a layer add up), not on top of it. Nothing is invertible, and
    the embeddings are the base's. The paper trains the task's adapter on English and swaps languages beneath it; here
    it sees the rows that every recipe sees, in all languages, each over its own. And the languages' adapters read
    little: what the base has read already, because no recipe is given text that it has not.
    """
    tokens, model = train_mad_x(job)
    peft: Any = model.eval()
    loaded, answers = Loaded(peft, None, load_tokenizer(str(job.base)), {}), Answers()
    for lang in job.world.languages:
        speak(model, lang)
        answers |= right(loaded, job.world, job.split, languages=[lang])
    return tokens, answers
