"""From rows to token ids: the prompt exactly as it will be seen at inference, the response, the reference by itself.

Each side is rendered and tokenised on its own and has a length budget of its own: a long response can never cut the
reference, and a reference is never cut at all, because its end is the anchor that the row connects to. No prompt's end
is looked for by token id: the prompt is tokenised alone, and its length is where the response starts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from cctuning.data.chat import Settled, answer_message, closes, learned, render, settle, special_tokens, split_thinking
from cctuning.data.messages import THINKING, plain
from cctuning.data.schema import Text
from cctuning.errors import UserError


@dataclass
class Encoder:
    """Turns rows into token ids with one tokenizer; build it once and use it for many rows.

    Attributes:
        tokenizer: of the model.
        max_length: tokens of prompt and response together; the response's end is cut. None: no limit.
        max_reference_length: tokens of a reference; a longer one is an error. None: no limit.
        chat: render with the chat template; a plain prompt becomes one user message.
        chat_template: Jinja text to use instead of the tokenizer's own. Settled (`chat.py`) on construction.
        eos: end each response with the eos token, unless the template ends it with a mark of its own.
        chat_template_kwargs: arguments of the template, as `enable_thinking`.
        thinking: responses think first; None: no, unless the template or its arguments say so.
        turns: `all`: earlier turns of the assistant are learned too, but those with `train: false`; `last`: none is.
        opening: (found out) the special tokens that this tokenizer puts before a plain text.
        closing: (found out) what the template writes after a response.
        settled: (found out) the template as it is rendered; None without chat.
        frame: (found out) how many tokens the template writes before and after a prompt's own text.

    Raises:
        UserError: on construction, where the tokenizer lacks the chat template or the eos token that is needed.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None
    max_reference_length: int | None = None
    chat: bool = False
    chat_template: str | None = None
    eos: bool = True
    chat_template_kwargs: Mapping[str, Any] | None = None
    thinking: bool | None = None
    turns: str = "all"
    opening: list[int] = field(init=False, default_factory=list)
    closing: str = field(init=False, default="")
    settled: Settled | None = field(init=False, default=None)
    frame: tuple[int, int] = field(init=False, default=(0, 0))

    def __post_init__(self) -> None:
        name = f"tokenizer {self.tokenizer.name_or_path!r}"
        if self.chat:
            if self.chat_template is None and self.tokenizer.chat_template is None:
                raise UserError(
                    f"{name} has no chat template; set chat_template_path to a Jinja file or to a tokenizer that has "
                    "one, or set chat: false."
                )
            try:
                self.settled = settle(self.tokenizer, self.chat_template, self.chat_template_kwargs, self.thinking)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
            self.chat_template, self.closing = self.settled.template, self.settled.closing
            self.frame = self._find_frame()
        else:
            self.opening = self._find_opening()
            self.frame = len(self.opening), 0
        if self._appends_eos and self.tokenizer.eos_token_id is None:
            raise UserError(
                f"{name} has no eos token, so a model trained with it would never stop; set the recipe's eos_token."
            )

    @property
    def _appends_eos(self) -> bool:
        return self.eos and not self.closing.strip()

    @property
    def thinks(self) -> bool:
        """Whether a prompt leaves it to the model to think before it answers."""
        return self.settled is not None and self.settled.thinks

    def _find_opening(self) -> list[int]:
        for probe in ("a", "0", "."):
            bare, whole = self._ids([probe])[0], list(self.tokenizer(probe)["input_ids"])
            for start in range(len(whole) - len(bare) + 1 if bare else 0):
                if whole[start : start + len(bare)] == bare:
                    return whole[:start]
        return []

    def _find_frame(self) -> tuple[int, int]:
        """Tokens that two unlike prompts share at their start and at their end."""
        try:
            one, other = self._ids([self.render("a word"), self.render("0.")])
        except UserError:  # a template that insists on turns of its own
            return 0, 0
        before, after = (
            next((place for place, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), 0)
            for x, y in ((one, other), (one[::-1], other[::-1]))
        )
        return before, after

    def _text(self, prompt: list[int]) -> list[int]:
        """First position of the prompt's own text and the one after its last: what is not the template's."""
        start, end = self.frame[0], len(prompt) - self.frame[1]
        return [start, end] if start < end else [0, len(prompt)]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids without special tokens beyond those written in the text; one call, which fast tokenizers parallelise."""
        if not texts:
            return []
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    def render(self, prompt: Text, row: Mapping[str, Any] | None = None) -> str:
        """The text of a prompt as the model sees it, up to where its answer starts.

        Args:
            prompt: text or messages.
            row: the row that it is of, which may have tools and arguments of the template.

        Raises:
            UserError: messages where `chat` is off, or the template refuses them.
        """
        if self.chat:
            return self._apply(_messages(prompt), row, prompt=True)
        if not isinstance(prompt, str):
            raise UserError("the prompt is messages and chat is off; set chat: true, or give text.")
        return prompt

    def _apply(self, messages: list[dict[str, Any]], row: Mapping[str, Any] | None, prompt: bool) -> str:
        tools, arguments = (_loaded((row or {}).get(name)) for name in ("tools", "arguments"))
        return render(self.tokenizer, messages, self.chat_template, prompt, arguments, tools)

    def prompt_ids(self, prompt: Text, row: Mapping[str, Any] | None = None) -> list[int]:
        """Ids of a prompt or a reference, as training and inference both see it."""
        return self._opened(self._ids([self.render(prompt, row)])[0])

    def _opened(self, ids: list[int]) -> list[int]:
        # A text may bring its own opening (a bos written into it): never twice.
        return ids if self.opening and ids[: len(self.opening)] == self.opening else self.opening + ids

    def _rest(self, row: Mapping[str, Any], text: str) -> str:
        """What follows the rendered prompt `text`: the response, and what the template closes it with."""
        response = str(row["response"])
        if not self.chat:
            return response
        thinking, content = (row["thinking"], response) if row.get("thinking") else split_thinking(response)
        answer = answer_message(content, thinking)
        if row.get("calls"):
            answer["tool_calls"] = _loaded(row["calls"])
        whole = self._apply([*_messages(row["prompt"]), answer], row, prompt=False)
        rest = whole[len(text) :] if whole.startswith(text) else None
        if rest is not None and (thinking is None or thinking.strip() in rest):
            return rest
        # The template renders a turn otherwise once it is answered (without its thinking, say), and the model will be
        # asked with the prompt alone. So that is kept, and a block of thinking that it opens is closed.
        if row.get("calls"):
            raise UserError("the chat template renders this prompt otherwise once its tool calls are answered.")
        opened = closes(text)
        if opened:
            thought = "" if thinking is None else thinking.strip("\n")
            return f"{thought}{opened}{content}{self.closing}"
        return (content if row.get("thinking") else response) + self.closing

    def doubt(self, row: Mapping[str, Any]) -> str | None:
        """What a person should know of a row that is used all the same."""
        if row.get("thinking") and not (self.settled is not None and self.settled.ending):
            return "their thinking is left out: the chat template has no place for it"
        parts = (row["prompt"], row.get("response"), row.get("reference"))
        texts = ("\n".join(turn["content"] or "" for turn in _messages(part)) for part in parts if part)
        token = next((found[0] for text in texts if (found := self._special.search(text))), None)
        return None if token is None else f"{token!r}, written in their text, is read as that special token"

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return special_tokens(self.tokenizer)

    def encode_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Token ids of one row.

        Args:
            row: `prompt`, and optionally `response`, `reference`, `lang`, `row`, `origin` and the other columns of
                `cctuning.data.schema`.

        Returns:
            `input_ids`; `labels`, -100 except for the response and earlier turns of the assistant, and everywhere
            where there is no response; `reference_input_ids`, empty where there is no reference; `text` and
            `reference_text`, the first position of the side's own text and the one after its last, without what the
            template adds; `row`; `lang`.

        Raises:
            UserError: nothing is left of the prompt or the response, or the reference is too long; names the row.
        """
        encoded = self.encode([row])[0]
        if isinstance(encoded, UserError):
            raise encoded
        return encoded

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | UserError]:
        """Ids of each row as `encode_row` gives them, or the `UserError` that says why it cannot be used."""
        texts: list[str] = []
        slots: list[UserError | tuple[str, int]] = []  # of a good row: its rest, and where its texts start
        for row in rows:
            try:
                prompt = self.render(row["prompt"], row)
                rest = self._rest(row, prompt) if row.get("response") is not None else ""
                reference = self.render(row["reference"], row) if row.get("reference") is not None else ""
            except UserError as error:
                slots.append(at(row, "prompt", str(error)))
            else:
                slots.append((rest, len(texts)))
                texts += [prompt, prompt + rest, reference]
        ids = self._ids(texts)
        earlier = iter(self._earlier(rows, texts, slots))
        result: list[dict[str, Any] | UserError] = []
        for row, slot in zip(rows, slots, strict=True):
            try:
                if isinstance(slot, UserError):
                    raise slot
                own, both, other = ids[slot[1] : slot[1] + 3]
                result.append(self._assemble(row, slot[0], own, both, other, next(earlier)))
            except UserError as error:
                result.append(error)
        return result

    def _earlier(
        self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str], slots: Sequence[UserError | tuple[str, int]]
    ) -> Iterator[list[tuple[int, int]]]:
        """Of each good row, the token spans of the earlier turns to be learned, in its bare prompt."""
        for row, slot in zip(rows, slots, strict=True):
            if not isinstance(slot, UserError):
                yield self._turns(row, texts[slot[1]])

    def _turns(self, row: Mapping[str, Any], text: str) -> list[tuple[int, int]]:
        prompt = row["prompt"]
        if self.turns != "all" or not self.chat or isinstance(prompt, str) or row.get("response") is None:
            return []
        places = learned(prompt, text, lambda other: self._apply(_messages(other), row, prompt=True))
        counts = [len(ids) for ids in self._ids([text[:place] for span in places for place in span])]
        return list(zip(counts[::2], counts[1::2], strict=True))

    def _assemble(
        self,
        row: Mapping[str, Any],
        rest: str,
        bare: list[int],
        whole: list[int],
        reference: list[int],
        earlier: Sequence[tuple[int, int]] = (),
    ) -> dict[str, Any]:
        if not bare:
            raise at(row, "prompt", "the tokenizer makes no token of it; mend the row.")
        prompt, response = self._opened(bare), []
        if row.get("response") is not None:
            # Where tokens merge across the border (an unknown one swallows what touches it), the prompt keeps those of
            # inference and the response its own.
            merged = whole[: len(bare)] != bare or len(whole) == len(bare) or bare[-1] == self.tokenizer.unk_token_id
            response = self._ids([rest])[0] if merged else whole[len(bare) :]
            if not response:
                raise at(row, "response", "the tokenizer makes no token of it; mend the row.")
            if self._appends_eos and response[-1] != self.tokenizer.eos_token_id:
                response.append(self.tokenizer.eos_token_id)
        limit, advice = self.max_length, "raise max_length or shorten the prompt."
        if limit is not None and response and len(prompt) >= limit:
            lengths = f"the prompt has {len(prompt)} tokens, the response {len(response)}, and max_length is {limit}"
            raise at(row, "response", f"no token of it would be left: {lengths}; {advice}")
        if limit is not None and len(prompt) > limit:
            why = "its end is where the row connects, so it is never cut"
            raise at(row, "prompt", f"{len(prompt)} tokens, and max_length is {limit}; {why}: {advice}")
        if row.get("reference") is not None:
            if not reference:
                raise at(row, "reference", "the tokenizer makes no token of it; mend the row.")
            reference, most = self._opened(reference), self.max_reference_length
            if most is not None and len(reference) > most:
                why = "its end is the anchor, so it is never cut: raise max_reference_length or shorten the reference."
                raise at(row, "reference", f"{len(reference)} tokens, and max_reference_length is {most}; {why}")
        labels = [-100] * len(prompt)
        for start, end in earlier:
            start, end = (place + len(prompt) - len(bare) for place in (start, end))
            labels[start:end] = prompt[start:end]
        return {
            "input_ids": (prompt + response)[:limit],
            "labels": (labels + response)[:limit],
            "reference_input_ids": reference,
            "text": self._text(prompt),
            "reference_text": self._text(reference) if reference else [],
            "row": row.get("row", -1),
            "lang": row.get("lang") or "",
        }


def _messages(prompt: Text) -> list[dict[str, Any]]:
    """Messages as templates read them: thinking under every key that they may read it from, and no key of ours."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    found = []
    for message in map(plain, prompt):
        thinking = message.pop("thinking", None)
        message.pop("train", None)
        found.append(message | (dict.fromkeys(THINKING, thinking) if thinking else {}))
    return found


def _loaded(value: Any) -> Any:
    """What a table holds as JSON."""
    return json.loads(value) if isinstance(value, str) else value


def at(row: Mapping[str, Any], part: str, reason: str) -> UserError:
    return UserError(f"{origin_of(row)}: {part}: {reason}")


def origin_of(row: Mapping[str, Any]) -> str:
    return str(row.get("origin") or f"row {row.get('row', '?')}")
