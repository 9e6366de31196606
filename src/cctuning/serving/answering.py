"""Prompts in, answers out, in batches: what `cctuning generate` and the demo's evaluation run on.

Prompts are rendered and tokenised by the `Encoder` that training uses, so a model sees at inference what it saw then.
For the same reason a prompt in the reference language runs as it did in training, where it is its own parallel: it is
given no reference, and takes no part in an adaptive connection. (In a gated one its student pass was trained.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from cctuning.data import Encoder
from cctuning.data.chat import own_template
from cctuning.errors import UserError
from cctuning.languages import is_code, same
from cctuning.model import serialization
from cctuning.model.loading import Loaded, base_of, load_tokenizer, resolve
from cctuning.model.sites import unwrap
from cctuning.serving.stop_tokens import Thoughts, answer_end, stop_text, stop_tokens

Text = str | list[dict[str, str]]


def chat_of(run: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts are rendered with the chat template: as in training; not known: if there is one.

    Args:
        run: the record of the training run, empty where there is none.
    """
    trained = run.get("chat")
    return bool(trained) if trained is not None else own_template(tokenizer) is not None


def encoder_of(
    loaded: Loaded, chat: bool | None = None, chat_template_kwargs: Mapping[str, Any] | None = None
) -> Encoder:
    """The encoder that a model's prompts go through; its template is the tokenizer's from then on.

    Args:
        loaded: model and tokenizer.
        chat: render prompts with the chat template; None: as `chat_of` says.
        chat_template_kwargs: arguments of the template, where they are to be others than in training.
    """
    chat = chat_of(loaded.run, loaded.tokenizer) if chat is None else chat
    return encoder_for(loaded.tokenizer, chat, chat_template_kwargs)


def encoder_for(
    tokenizer: PreTrainedTokenizerBase, chat: bool, chat_template_kwargs: Mapping[str, Any] | None = None
) -> Encoder:
    """As `encoder_of`, of a tokenizer."""
    if chat_template_kwargs and not chat:
        raise UserError("chat_template_kwargs: prompts are not rendered with the chat template; leave it out.")
    encoder = Encoder(tokenizer, chat=chat, eos=False, chat_template_kwargs=chat_template_kwargs)
    if chat:
        tokenizer.chat_template = encoder.chat_template
    return encoder


def tokenizer_of(path: str, trust_remote_code: bool = False) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    """The tokenizer that `load` would give a model, and the record of its run; no weight is read.

    Raises:
        UserError: nothing that can be loaded is there.
    """
    where, run = resolve(path)
    folder = Path(where)
    base, _ = base_of(folder, run)
    own = base is None or not folder.is_dir() or (folder / "tokenizer_config.json").is_file()
    return load_tokenizer(where if own else str(base), trust_remote_code=trust_remote_code), run


def chat_notes(run: Mapping[str, Any], encoder: Encoder) -> list[str]:
    """How prompts are rendered otherwise than in training; where that is not known, what the template adds to them."""
    notes = []
    trained = run.get("chat")
    if trained is not None and bool(trained) != encoder.chat:
        notes.append(
            f"prompts are rendered {'with' if encoder.chat else 'without'} the chat template, and the run was trained "
            f"{'with' if trained else 'without'} it."
        )
    settled = encoder.settled
    if settled is None:
        return notes
    if trained and settled.thinks != bool(run.get("thinking")):
        notes.append(f"the model may {'' if settled.thinks else 'not '}think first, otherwise than in training.")
    return notes if run else [*notes, *settled.notes()]


def reference_language(path: str) -> str | None:
    """The language that the connection of `path` borrows from, None where it has no connection; no weight is read.

    Raises:
        UserError: nothing that can be loaded is there.
    """
    folder = Path(resolve(path)[0])
    return (
        serialization.read_config(folder)["reference_language"]
        if (folder / serialization.CONFIG_FILE).is_file()
        else None
    )


class Answerer:
    """Generate answers with a loaded model; greedy unless a temperature is given."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        chat: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        system: str | None = None,
        bypass: bool = False,
        batch_size: int = 8,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        """
        Args:
            loaded: model and tokenizer.
            chat, chat_template_kwargs: as in `encoder_of`.
            system: a system message for prompts that have none of their own.
            bypass: run without the connection's transform.
            batch_size, max_new_tokens, temperature, seed: of the generation.

        Raises:
            UserError: an option out of range, or a tokenizer that lacks what an option needs.
        """
        for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise UserError(f"{name}: expected at least 1, got {value}.")
        if not 0 <= temperature < math.inf:  # nan neither
            raise UserError(f"temperature: expected 0 (greedy) or more, got {temperature}.")
        self.loaded, self.system, self.bypass, self.batch_size = loaded, system, bypass, batch_size
        self.tokenizer = loaded.tokenizer
        if chat and self.tokenizer.chat_template is None:
            raise UserError("--chat yes: the tokenizer has no chat template; use --chat no, or set one when training.")
        self.encoder = encoder_of(loaded, chat, chat_template_kwargs)
        self.chat = self.encoder.chat
        if system and not self.chat:
            raise UserError("--system: a system message needs the chat template, which is off; leave the option out.")
        pad = self.tokenizer.pad_token_id
        base = unwrap(loaded.model)
        self.positions = getattr(base.config.get_text_config(), "max_position_embeddings", None)
        stops = stop_tokens(self.encoder, base)
        self.pad = pad if isinstance(pad, int) else stops[0] if stops else 0  # masked out: any id will do
        self.stop_text = stop_text(self.encoder)
        self.end = answer_end(self.encoder)
        self.thoughts = Thoughts.of(self.encoder)
        self.options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "pad_token_id": self.pad}
        if stops:
            self.options["eos_token_id"] = stops
        if self.stop_text is not None:
            self.options |= {"stop_strings": [self.stop_text], "tokenizer": self.tokenizer}
        self.options |= {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        torch.manual_seed(seed)

    def prompt_ids(self, prompt: Text, row: Mapping[str, Any] | None = None) -> list[int]:
        """Ids of one prompt (or reference), exactly as in training, with the system message if there is one.

        Args:
            row: that it is of, with its tools and arguments of the chat template.
        """
        if self.system:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            if messages[0]["role"] != "system":
                prompt = [{"role": "system", "content": self.system}, *messages]
        ids = self.encoder.prompt_ids(prompt, row)
        if not ids:
            raise UserError(f"prompt {prompt!r}: the tokenizer makes no token of it; give some text.")
        if self.positions is not None and len(ids) >= self.positions:
            raise UserError(
                f"prompt {str(prompt)[:40]!r}…: {len(ids)} tokens, and the model has {self.positions} positions; "
                "shorten it."
            )
        return ids

    def encode(
        self, prompts: Sequence[Text], rows: Sequence[Mapping[str, Any] | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Left-padded ids and mask (B, T) of the prompts."""
        of = rows if rows is not None else [None] * len(prompts)
        ids = [self.prompt_ids(prompt, row) for prompt, row in zip(prompts, of, strict=True)]
        width = max(len(one) for one in ids)
        tokens = torch.tensor([[self.pad] * (width - len(one)) + one for one in ids])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids])
        device = self.loaded.model.device
        return tokens.to(device), mask.to(device)

    def __call__(
        self,
        prompts: Sequence[Text],
        references: Sequence[Text | None] | None = None,
        progress: bool = False,
        *,
        languages: Sequence[str | None] | None = None,
        rows: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[str]:
        """Answers to `prompts`, in their order; rows with a reference run over the live connection.

        Args:
            prompts: text or messages.
            references: each prompt's parallel, None for rows without one.
            progress: show a bar.
            languages: each prompt's language, None where nobody told: it is then taken for one that borrows.
            rows: what prompts are of, with their tools and arguments of the chat template.
        """
        connected = self.loaded.connected
        given = list(references or [None] * len(prompts))
        apart = [False] * len(prompts)
        if connected is not None and languages is not None:
            own = connected.reference_language
            apart = [language is not None and is_code(language) and same(language, own) for language in languages]
            given = [None if alone else reference for alone, reference in zip(apart, given, strict=True)]
        order = sorted(range(len(prompts)), key=lambda i: -len(str(prompts[i])))  # like lengths together
        groups = [order]
        if connected is not None and not connected.mixes_references:
            groups = [[i for i in order if given[i] is not None], [i for i in order if given[i] is None]]
        batches = [some[i : i + self.batch_size] for some in groups for i in range(0, len(some), self.batch_size)]
        answers = [""] * len(prompts)
        whole = list(rows) if rows is not None else [None] * len(prompts)
        for chosen in tqdm(batches, desc="Generating", disable=not progress, unit="batch"):
            parts = [[values[i] for i in chosen] for values in (list(prompts), given, apart, whole)]
            for place, text in zip(chosen, self._batch(*parts), strict=True):
                answers[place] = text
        return answers

    @torch.no_grad()
    def _batch(self, prompts: list[Any], references: list[Any], apart: list[Any], rows: list[Any]) -> list[str]:
        ids, mask = self.encode(prompts, rows)
        connected, options = self.loaded.connected, dict(self.options)
        if self.positions is not None:
            options["max_new_tokens"] = min(options["max_new_tokens"], self.positions - ids.shape[1])
        if connected is None:
            model: Any = self.loaded.model
            tokens = model.generate(input_ids=ids, attention_mask=mask, **options)
        else:
            given = [reference for reference in references if reference is not None]
            of = [row for row, reference in zip(rows, references, strict=True) if reference is not None]
            if given:
                index = torch.tensor([-1 if reference is None else 0 for reference in references])
                index[index >= 0] = torch.arange(len(given))
                reference_ids, reference_mask = self.encode(given, of)
                options |= {
                    "reference_input_ids": reference_ids,
                    "reference_attention_mask": reference_mask,
                    "reference_index": index.to(ids.device),
                }
            else:
                options["connect"] = ~torch.tensor(apart, device=ids.device)
            with connected.disable_adapter() if self.bypass else nullcontext():
                tokens = connected.generate(ids, mask, **options)
        return [self._said(row) for row in tokens[:, ids.shape[1] :].tolist()]

    def _said(self, tokens: list[int]) -> str:
        """The answer alone, without what the model thought before it."""
        if self.thoughts is not None:
            text = self.thoughts.answer(tokens, self.tokenizer)
        else:
            text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        return (text.partition(self.end)[0] if self.end else text).strip()
