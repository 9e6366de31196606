"""Generate answers to prompts in batches.

Prompts are rendered and tokenized by the `Encoder` of training. A prompt in the reference language runs as it did in
training, where it is its own parallel text: without a reference, and not connected in an adaptive connection. (In a
gated connection its student pass was trained, so it is connected.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
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
from cctuning.model.loading import Loaded, base_of, resolve, to_accelerator, tokenizer_of
from cctuning.model.sites import unwrap
from cctuning.serving.engines import EXPORT_FILE
from cctuning.serving.stop_tokens import Thoughts, answer_end, stop_text, stop_tokens

Text = str | list[dict[str, str]]


def chat_of(run: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts are rendered with the chat template: as the record `run` says, otherwise if there is one."""
    trained = run.get("chat")
    return bool(trained) if trained is not None else own_template(tokenizer) is not None


def encoder_of(
    tokenizer: PreTrainedTokenizerBase,
    run: Mapping[str, Any],
    chat: bool | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **limits: Any,
) -> Encoder:
    """The encoder for prompts to a model. The tokenizer's template becomes that of the encoder.

    Args:
        run: record of the model's run, or an empty one.
        chat: render prompts with the chat template; None: see `chat_of`.
        chat_template_kwargs: arguments of the template that replace those of training.
        limits: most tokens, as in `Encoder`.
    """
    chat = chat_of(run, tokenizer) if chat is None else chat
    if chat_template_kwargs and not chat:
        raise UserError("chat_template_kwargs: only with the chat template, which is off; leave the option out.")
    encoder = Encoder(tokenizer, chat=chat, eos=False, chat_template_kwargs=chat_template_kwargs, **limits)
    if chat:
        tokenizer.chat_template = encoder.chat_template
    return encoder


def tokenizer_and_run(path: str, trust_remote_code: bool = False) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    """The tokenizer that `load` gives a model, and the record of its run, without reading weights.

    For an export or another model without a run, the record has what is known: the reference language of training, and
    the languages.
    """
    where, run = resolve(path)
    folder = Path(where)
    base, _ = base_of(folder, run)
    tokenizer = tokenizer_of(where, base, trust_remote_code)
    if not run:
        with suppress(OSError, ValueError, KeyError):
            manifest = json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8"))
            run["reference_language"] = manifest["reference_language"]
            run["data"] = {"languages": dict.fromkeys(manifest["languages"])}
        if home := reference_language(path):
            run["reference_language"] = home
    return tokenizer, run


def chat_notes(run: Mapping[str, Any], encoder: Encoder) -> list[str]:
    """How the rendering of prompts differs from training; for a model without a run, what the template adds."""
    notes = []
    trained = run.get("chat")
    if trained is not None and bool(trained) != encoder.chat:
        now, then = ("with" if chat else "without" for chat in (encoder.chat, trained))
        notes.append(f"prompts are rendered {now} the chat template; the run was trained {then} it.")
    if encoder.settled is None:
        return notes
    thinks = encoder.settled.thinks
    if trained and thinks != bool(run.get("thinking")):
        notes.append(f"thinking is {'on' if thinks else 'off'}; in training it was {'off' if thinks else 'on'}.")
    return [*notes, *(encoder.settled.notes() if trained is None else []), *encoder.settled.ignored()]


def reference_language(path: str) -> str | None:
    """Reference language of a model's connection, without reading weights; None where it has no connection."""
    folder = Path(resolve(path)[0])
    if not (folder / serialization.CONFIG_FILE).is_file():
        return None
    return str(serialization.read_config(folder)["reference_language"])


class Answerer:
    """Generate answers with a loaded model; greedy unless a temperature is given.

    Args:
        chat, chat_template_kwargs: as in `encoder_of`.
        system: a system message for prompts that have none.
        bypass: run without the connection's transform.
        strip: remove white space before an answer.

    Attributes:
        unfinished: places of the answers of the last call that were cut off by `max_new_tokens`.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        chat: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        system: str | None = None,
        bypass: bool = False,
        strip: bool = True,
        batch_size: int = 8,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise UserError(f"{name}: expected at least 1, got {value}.")
        if not 0 <= temperature < math.inf:  # nan neither
            raise UserError(f"temperature: expected 0 (greedy) or more, got {temperature}.")
        self.loaded, self.system, self.strip = to_accelerator(loaded), system, strip
        self.bypass, self.batch_size = bypass, batch_size
        self.tokenizer = loaded.tokenizer
        if chat and own_template(self.tokenizer) is None:
            raise UserError("--chat yes: the tokenizer has no chat template; use --chat no, or set one when training.")
        self.encoder = encoder_of(self.tokenizer, loaded.run, chat, chat_template_kwargs)
        self.chat = self.encoder.chat
        if system and not self.chat:
            raise UserError("--system: only with the chat template, which is off; leave the option out.")
        base = unwrap(loaded.model)
        self.positions = getattr(base.config.get_text_config(), "max_position_embeddings", None)
        self.end, self.thoughts = answer_end(self.encoder), Thoughts.of(self.encoder)
        self.unfinished: list[int] = []
        stops, text = self.stops = stop_tokens(self.encoder, base), stop_text(self.encoder)
        pad = self.tokenizer.pad_token_id
        self.pad = pad if isinstance(pad, int) else stops[0] if stops else 0  # masked: any id will do
        self.options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "pad_token_id": self.pad}
        self.options |= {"eos_token_id": stops} if stops else {}
        self.options |= {"stop_strings": [text], "tokenizer": self.tokenizer} if text is not None else {}
        self.options |= {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        torch.manual_seed(seed)

    def prompt_ids(self, prompt: Text, row: Mapping[str, Any] | None = None) -> list[int]:
        """Token ids of a prompt or reference, with the system message; `row` may have tools and template arguments."""
        if self.system:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            if messages[0]["role"] != "system":
                prompt = [{"role": "system", "content": self.system}, *messages]
        ids = self.encoder.prompt_ids(prompt, row)
        if not ids:
            raise UserError(f"prompt {prompt!r}: has no tokens; give some text.")
        if self.positions is not None and len(ids) >= self.positions:
            raise UserError(
                f"prompt {str(prompt)[:40]!r}…: {len(ids)} tokens, and the model has {self.positions} positions; "
                "shorten it."
            )
        return ids

    def encode(
        self, prompts: Sequence[Text], rows: Sequence[Mapping[str, Any] | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Left-padded ids and mask (B, T) of prompts."""
        of = rows if rows is not None else [None] * len(prompts)
        ids = [self.prompt_ids(prompt, row) for prompt, row in zip(prompts, of, strict=True)]
        width, device = max(map(len, ids)), self.loaded.model.device
        tokens = torch.tensor([[self.pad] * (width - len(one)) + one for one in ids], device=device)
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids], device=device)
        return tokens, mask

    def __call__(
        self,
        prompts: Sequence[Text],
        references: Sequence[Text | None] | None = None,
        progress: bool = False,
        *,
        languages: Sequence[str | None] | None = None,
        rows: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[str]:
        """Answers to `prompts`, in their order.

        Args:
            prompts: text or messages.
            references: parallel text of each prompt, for the live connection; None for prompts without it.
            progress: show a progress bar.
            languages: of each prompt; None where it is unknown, which counts as another than the reference language.
            rows: of each prompt, for tools and arguments of the chat template.
        """
        connected = self.loaded.connected
        given = list(references or [None] * len(prompts))
        own = [False] * len(prompts)  # in the reference language
        if connected is not None and languages is not None:
            home = connected.reference_language
            own = [language is not None and is_code(language) and same(language, home) for language in languages]
            given = [None if alone else reference for alone, reference in zip(own, given, strict=True)]
        order = sorted(range(len(prompts)), key=lambda i: -len(str(prompts[i])))  # similar lengths together
        groups = [order]
        if connected is not None and not connected.mixes_references:  # a batch has references for all, or for none
            groups = [[i for i in order if given[i] is not None], [i for i in order if given[i] is None]]
        batches = [some[i : i + self.batch_size] for some in groups for i in range(0, len(some), self.batch_size)]
        answers, self.unfinished = [""] * len(prompts), []
        every = list(rows) if rows is not None else [None] * len(prompts)
        for chosen in tqdm(batches, desc="Generating", disable=not progress, unit="batch"):
            parts = [[values[i] for i in chosen] for values in (list(prompts), given, own, every)]
            for place, (text, whole) in zip(chosen, self._batch(*parts), strict=True):
                answers[place] = text
                self.unfinished += [] if whole else [place]
        return answers

    @torch.no_grad()
    def _batch(
        self, prompts: list[Any], references: list[Any], own: list[Any], rows: list[Any]
    ) -> list[tuple[str, bool]]:
        """Answers, and whether each came to its end."""
        ids, mask = self.encode(prompts, rows)
        connected, options = self.loaded.connected, dict(self.options)
        if self.positions is not None:
            options["max_new_tokens"] = min(options["max_new_tokens"], self.positions - ids.shape[1])
        if connected is None:
            model: Any = self.loaded.model
            tokens = model.generate(input_ids=ids, attention_mask=mask, **options)
        else:
            having = [i for i, reference in enumerate(references) if reference is not None]
            if having:
                index = torch.full((len(prompts),), -1)
                index[having] = torch.arange(len(having))
                reference_ids, reference_mask = self.encode([references[i] for i in having], [rows[i] for i in having])
                options |= {
                    "reference_input_ids": reference_ids,
                    "reference_attention_mask": reference_mask,
                    "reference_index": index.to(ids.device),
                }
            else:
                options["connect"] = ~torch.tensor(own, device=ids.device)
            with connected.disable_adapter() if self.bypass else nullcontext():
                tokens = connected.generate(ids, mask, **options)
        return [(self._answer(row), self._ended(row[1:])) for row in tokens[:, ids.shape[1] - 1 :].tolist()]

    def _ended(self, generated: list[int]) -> bool:
        ids, text = self.stops
        if not {*generated}.isdisjoint(ids):
            return True
        return text is not None and text in str(self.tokenizer.decode(generated))

    def _answer(self, tokens: list[int]) -> str:
        """The text of generated tokens, without thinking and end of turn. `tokens` begin with the prompt's last."""
        if self.thoughts is not None:
            text = self.thoughts.answer(tokens[1:], self.tokenizer)
        else:
            first = 1 if self.strip else 0  # some tokenizers decode no space at the beginning of a text
            parts = (tokens[first:1], tokens[first:])
            before, text = (str(self.tokenizer.decode(part, skip_special_tokens=True)) for part in parts)
            text = text[len(before) :]
        text = text.partition(self.end)[0] if self.end else text
        return text.strip() if self.strip else text.rstrip()
