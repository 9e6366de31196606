"""Prompts in, answers out, in batches: what `cctuning generate` and the demo's evaluation run on."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from cctuning.errors import UserError
from cctuning.model.loading import Loaded

Text = str | list[dict[str, str]]


class Answerer:
    """Generate answers with a loaded model; greedy unless a temperature is given."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        chat: bool | None = None,
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
            chat: render prompts with the chat template; None: if the tokenizer has one and the model was not trained
                without.
            system: a system message for plain prompts.
            bypass: run without the connection's transform.
            batch_size, max_new_tokens, temperature, seed: of the generation.
        """
        self.loaded, self.system, self.bypass, self.batch_size = loaded, system, bypass, batch_size
        self.tokenizer = loaded.tokenizer
        if chat and self.tokenizer.chat_template is None:
            raise UserError("--chat yes: the tokenizer has no chat template; use --chat no, or set one when training.")
        trained = loaded.run.get("chat")
        has_template = self.tokenizer.chat_template is not None
        self.chat = chat if chat is not None else (trained if trained is not None else has_template)
        if self.tokenizer.pad_token is None:
            if self.tokenizer.eos_token is None:
                raise UserError(
                    "the tokenizer has neither a pad nor an eos token; set one in its tokenizer_config.json."
                )
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "pad_token_id": self.tokenizer.pad_token_id}
        self.options |= {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        torch.manual_seed(seed)

    def render(self, prompt: Text) -> str:
        """The text the model sees, ready for `add_special_tokens=not self.chat`."""
        if not self.chat:
            if not isinstance(prompt, str):
                raise UserError("the rows are messages, and the chat template is off; use --chat yes.")
            return prompt
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def encode(self, prompts: list[Text]) -> tuple[Tensor, Tensor]:
        """Left-padded ids and mask (B, T) of the prompts, as training rendered them."""
        self.tokenizer.padding_side = "left"
        texts = [self.render(prompt) for prompt in prompts]
        ids = [self.tokenizer(text, add_special_tokens=not self.chat)["input_ids"] for text in texts]
        if not self.chat:  # some tokenizers close every text with eos, which would end the answer before it starts
            ids = [one[:-1] if len(one) > 1 and one[-1] == self.tokenizer.eos_token_id else one for one in ids]
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        device = self.loaded.model.device
        return batch["input_ids"].to(device), batch["attention_mask"].to(device)

    def __call__(
        self, prompts: list[Text], references: list[Text | None] | None = None, progress: bool = False
    ) -> list[str]:
        """Answers to `prompts`, in their order; rows with a reference run over the live connection."""
        order = sorted(range(len(prompts)), key=lambda i: -len(str(prompts[i])))  # like lengths together
        answers = [""] * len(prompts)
        starts = range(0, len(order), self.batch_size)
        for start in tqdm(starts, desc="Generating", disable=not progress, unit="batch"):
            rows = order[start : start + self.batch_size]
            texts = self._batch([prompts[i] for i in rows], [references[i] for i in rows] if references else None)
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text
        return answers

    @torch.no_grad()
    def _batch(self, prompts: list[Text], references: list[Text | None] | None) -> list[str]:
        ids, mask = self.encode(prompts)
        connected, options = self.loaded.connected, dict(self.options)
        if connected is None:
            model: Any = self.loaded.model
            tokens = model.generate(input_ids=ids, attention_mask=mask, **options)
        else:
            if references and any(reference is not None for reference in references):
                given = [reference for reference in references if reference is not None]
                index = torch.tensor([-1 if reference is None else 0 for reference in references])
                index[index >= 0] = torch.arange(len(given))
                reference_ids, reference_mask = self.encode(given)
                options |= {
                    "reference_input_ids": reference_ids,
                    "reference_attention_mask": reference_mask,
                    "reference_index": index.to(ids.device),
                }
            with connected.disable_adapter() if self.bypass else nullcontext():
                tokens = connected.generate(ids, mask, **options)
        return [
            text.strip() for text in self.tokenizer.batch_decode(tokens[:, ids.shape[1] :], skip_special_tokens=True)
        ]
